-- Every statement of the ledger, by name. worker/ledger/session.py loads them; a test prepares each one against the schema.
-- What is sealed by a checksum is read AS BLOB: one flipped bit makes a text of a blob, and reading that as a text fails.
-- No window is longer than a day (86400 s): that lets an index on start find what ended after some time.

-- name: dataset_id
SELECT id FROM dataset WHERE name = :name

-- name: add_dataset
INSERT INTO dataset (name) VALUES (:name) RETURNING id

-- name: scope_id
SELECT id FROM scope WHERE tag = :tag

-- name: record_scope
INSERT INTO scope (tag, name, account_tag, account_name, plan, first_seen_at)
VALUES (:tag, :name, :account_tag, :account_name, :plan, :now)
ON CONFLICT (tag) DO UPDATE SET
    name = excluded.name, account_tag = excluded.account_tag, account_name = excluded.account_name,
    plan = excluded.plan, gone_at = NULL
WHERE (name, account_tag, account_name, plan, gone_at)
    IS NOT (excluded.name, excluded.account_tag, excluded.account_name, excluded.plan, NULL)

-- name: record_scope_token
INSERT INTO scope_token (scope_id, token) SELECT id, :token FROM scope WHERE tag = :tag
ON CONFLICT (scope_id) DO UPDATE SET token = excluded.token WHERE token != excluded.token

-- name: present_scopes
SELECT tag, name, account_tag, account_name, plan, token
FROM scope JOIN scope_token ON scope_token.scope_id = scope.id
WHERE gone_at IS NULL
ORDER BY name, tag

-- name: scopes_of_tokens
SELECT token, count(*) FILTER (WHERE tag != account_tag), count(*) FILTER (WHERE tag = account_tag)
FROM scope JOIN scope_token ON scope_token.scope_id = scope.id
WHERE gone_at IS NULL
GROUP BY token

-- name: scope_gone
UPDATE scope SET gone_at = :now WHERE tag = :tag

-- name: end_of_other_widths
SELECT max(
    (
        SELECT captured.start FROM captured
        WHERE captured.dataset_id = expectation.dataset_id AND captured.scope_id = expectation.scope_id
            AND captured.width_seconds = expectation.width_seconds
        ORDER BY captured.chapter DESC, captured.start DESC LIMIT 1
    ) + expectation.width_seconds
)
FROM expectation
WHERE dataset_id = :dataset_id AND scope_id = :scope_id AND width_seconds != :width_seconds

-- name: expect
INSERT INTO expectation (dataset_id, scope_id, width_seconds, from_start)
VALUES (:dataset_id, :scope_id, :width_seconds, max(:from_start, :not_before))
ON CONFLICT DO UPDATE SET from_start = max(from_start, :not_before), until = NULL
RETURNING from_start

-- name: end_other_expectations
UPDATE expectation SET until = :until
WHERE dataset_id = :dataset_id AND scope_id = :scope_id AND width_seconds != :width_seconds AND until IS NULL

-- name: settled_starts
SELECT start FROM captured
WHERE dataset_id = :dataset_id AND scope_id = :scope_id AND width_seconds = :width_seconds AND start >= :since
    AND chapter >= :since / (64 * :width_seconds)
UNION ALL
SELECT start FROM hole
WHERE dataset_id = :dataset_id AND scope_id = :scope_id AND width_seconds = :width_seconds AND start >= :since
    AND reason = 'expired'

-- name: captured_between
SELECT scope.tag, captured.start, captured.width_seconds
FROM json_each(:tags) AS asked
CROSS JOIN scope ON scope.tag = asked.value
CROSS JOIN json_each(:widths) AS width
CROSS JOIN captured
WHERE captured.dataset_id = :dataset_id AND captured.scope_id = scope.id AND captured.width_seconds = width.value
    AND captured.start > :since - width.value AND captured.start < :until
    AND captured.chapter BETWEEN (:since - width.value) / (64 * width.value) AND :until / (64 * width.value)

-- Of each width the newest bucket is one look into the newest chapter that has one.
-- name: newest_timestamp
SELECT max((
    SELECT timestamp_ms FROM captured
    WHERE dataset_id = :dataset_id AND scope_id = :scope_id AND width_seconds = width.value
    ORDER BY chapter DESC, start DESC LIMIT 1
))
FROM json_each(:widths) AS width

-- name: series_by_labels
SELECT id, checksum FROM series WHERE labels = ?

-- name: series_by_id
SELECT CAST(labels AS BLOB), checksum FROM series WHERE id = ?

-- name: next_series_id
SELECT coalesce(max(id), 0) + 1 FROM series

-- name: add_series
INSERT INTO series (id, labels, checksum) VALUES (?, ?, ?)

-- name: add_bucket
INSERT INTO bucket
    (dataset_id, scope_id, width_seconds, start, timestamp_ms, captured_at, series_ids, sample_values, checksum)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- name: begin_chapter
INSERT INTO chapter (dataset_id, width_seconds, number) VALUES (?, ?, ?)
ON CONFLICT DO NOTHING

-- name: keys_after
SELECT dataset_id, scope_id, width_seconds, start FROM bucket WHERE id > :id ORDER BY id

-- name: captured_content
SELECT id, timestamp_ms, CAST(series_ids AS BLOB), CAST(sample_values AS BLOB), checksum FROM bucket
WHERE dataset_id = :dataset_id AND width_seconds = :width_seconds AND start / (64 * width_seconds) = :start / (64 * :width_seconds)
    AND scope_id = :scope_id AND start = :start

-- name: has_holes
SELECT EXISTS (SELECT 1 FROM hole WHERE start BETWEEN :first_start AND :last_start)

-- name: close_holes
DELETE FROM hole WHERE (dataset_id, scope_id, width_seconds, start) IN (
    SELECT dataset_id, scope_id, width_seconds, start FROM bucket WHERE id >= :first_id
)

-- name: record_hole
INSERT INTO hole (dataset_id, scope_id, width_seconds, start, reason, detail, attempts, attempted_at)
SELECT :dataset_id, :scope_id, :width_seconds, :start, :reason, :detail, 1, :now
WHERE NOT EXISTS (
    SELECT 1 FROM bucket
    WHERE dataset_id = :dataset_id AND width_seconds = :width_seconds AND start / (64 * width_seconds) = :start / (64 * :width_seconds)
        AND scope_id = :scope_id AND start = :start
)
ON CONFLICT DO UPDATE SET
    reason = excluded.reason, detail = excluded.detail, attempts = attempts + 1, attempted_at = excluded.attempted_at

-- name: holes_between
SELECT scope.tag, hole.start, hole.reason, hole.detail
FROM json_each(:tags) AS asked
CROSS JOIN scope ON scope.tag = asked.value
CROSS JOIN hole
WHERE hole.dataset_id = :dataset_id AND hole.scope_id = scope.id AND hole.width_seconds = :width_seconds
    AND hole.start >= :since AND hole.start < :until

-- name: log_requests
INSERT INTO request_log (token, api, ended_at) VALUES (:token, :api, :ended_at)
ON CONFLICT (token, api) DO UPDATE SET ended_at = excluded.ended_at

-- name: logged_requests
SELECT api, ended_at FROM request_log WHERE token = :token

-- name: record_token_refusal
INSERT INTO token_refusal (token, refused_at, detail) VALUES (:token, :now, :detail)
ON CONFLICT (token) DO UPDATE SET detail = excluded.detail

-- name: forget_token_refusal
DELETE FROM token_refusal WHERE token = :token

-- name: token_refusals
SELECT token, refused_at, detail FROM token_refusal

-- name: record_drift
INSERT INTO drift (bucket_id, seen_at, samples_differing) VALUES (:bucket_id, :now, :samples_differing)
ON CONFLICT DO UPDATE SET seen_at = excluded.seen_at, samples_differing = excluded.samples_differing

-- name: all_destinations
SELECT id, name, segment_seconds, gone_at FROM destination

-- name: destination_id
SELECT id FROM destination WHERE name = :name

-- name: record_destination
INSERT INTO destination (name, segment_seconds) VALUES (:name, :segment_seconds)
ON CONFLICT (name) DO UPDATE SET segment_seconds = excluded.segment_seconds, gone_at = NULL
RETURNING id

-- name: destination_gone
UPDATE destination SET gone_at = :now WHERE id = :id

-- name: reorder_queue
UPDATE delivery SET segment = start - start % max(window_end - start, :segment_seconds)
WHERE destination_id = :destination_id AND state = 'pending'

-- name: enqueue
INSERT INTO delivery (bucket_id, destination_id, state, segment, scope_id, start, window_end, sample_count, job_id)
SELECT
    bucket.id, destination.id, 'pending',
    bucket.start - bucket.start % max(bucket.width_seconds, destination.segment_seconds),
    bucket.scope_id, bucket.start, bucket.start + bucket.width_seconds, length(bucket.sample_values) / 8, :job_id
FROM bucket CROSS JOIN destination
WHERE bucket.id >= :first_id AND length(bucket.sample_values) > 0 AND destination.gone_at IS NULL

-- name: enqueue_ended_since
INSERT INTO delivery (bucket_id, destination_id, state, segment, scope_id, start, window_end, sample_count)
SELECT
    bucket.id, destination.id, 'pending',
    bucket.start - bucket.start % max(bucket.width_seconds, destination.segment_seconds),
    bucket.scope_id, bucket.start, bucket.start + bucket.width_seconds, length(bucket.sample_values) / 8
FROM destination CROSS JOIN bucket
WHERE destination.id = :destination_id AND length(bucket.sample_values) > 0
    AND bucket.start >= :since - 86400 AND bucket.start + bucket.width_seconds >= :since
ON CONFLICT DO NOTHING

-- The queue comes from its index alone. The row itself is asked too: an index that is damaged may still list what was
-- decided long ago, and without this it would be sent again for ever.
-- name: pending
SELECT
    queued.segment, queued.scope_id, queued.start, queued.bucket_id,
    bucket.dataset_id, bucket.scope_id, bucket.width_seconds, bucket.start,
    bucket.timestamp_ms, CAST(bucket.series_ids AS BLOB), CAST(bucket.sample_values AS BLOB), bucket.checksum,
    CASE WHEN delivery.job_id IS NOT NULL THEN (
        SELECT CAST(part.series_ids AS BLOB) FROM part
        WHERE part.bucket_id = queued.bucket_id AND part.destination_id = queued.destination_id
    ) END
FROM delivery AS queued
CROSS JOIN delivery ON delivery.bucket_id = queued.bucket_id AND delivery.destination_id = queued.destination_id
CROSS JOIN bucket ON bucket.id = queued.bucket_id
WHERE queued.destination_id = (SELECT id FROM destination WHERE name = :destination)
    AND queued.state = 'pending'
    AND queued.scope_id % :lanes = :lane
    AND (queued.segment, queued.scope_id, queued.start, queued.bucket_id) > (:segment, :scope_id, :start, :bucket_id)
    AND queued.segment < :before_segment
    AND (:without IS NULL OR queued.bucket_id NOT IN (SELECT value FROM json_each(:without)))
    AND delivery.state NOT IN ('acknowledged', 'partial', 'refused', 'expired', 'damaged')
    AND (:waited_for_since IS NULL OR NOT EXISTS (
        SELECT 1 FROM hole
        WHERE hole.dataset_id = bucket.dataset_id AND hole.scope_id = bucket.scope_id
            AND hole.width_seconds = bucket.width_seconds
            AND hole.start < bucket.start AND hole.start > :waited_for_since - bucket.width_seconds
            AND hole.reason = 'failed'
    ))
ORDER BY queued.segment, queued.scope_id, queued.start, queued.bucket_id

-- name: destination_succeeded
UPDATE destination SET last_success_at = :now WHERE id = :destination_id

-- name: destination_failed
UPDATE destination SET last_failure_at = :now, last_failure = :reason WHERE name = :name

-- name: destination_reports
SELECT name, last_success_at, last_failure_at, last_failure FROM destination WHERE gone_at IS NULL ORDER BY name

-- name: count_pending
SELECT count(*) FROM delivery
WHERE destination_id = :destination_id AND state = 'pending'
    AND bucket_id IN (SELECT value FROM json_each(:bucket_ids))

-- name: record_refusal
INSERT INTO refusal (destination_id, bucket_id, series_ids, status, reason, refused_at)
SELECT destination_id, bucket_id, :series_ids, :status, :reason, :now FROM delivery
WHERE destination_id = :destination_id AND bucket_id = :bucket_id AND state IN ('partial', 'refused')

-- What is pending has refusals only where a repair sends a part of it, and they are of samples beside that.
-- name: acknowledge
UPDATE delivery SET
    decided_at = :now,
    (state, status, reason) = (
        SELECT CASE WHEN count(*) THEN 'partial' ELSE 'acknowledged' END, max(refusal.status), max(refusal.reason)
        FROM refusal
        WHERE delivery.job_id IS NOT NULL
            AND refusal.bucket_id = delivery.bucket_id AND refusal.destination_id = delivery.destination_id
    )
WHERE destination_id = :destination_id AND bucket_id IN (SELECT value FROM json_each(:bucket_ids))
    AND state NOT IN ('partial', 'refused')
    -- More of it may have been asked for since a part was sent: what that part proves is not enough.
    AND (:parts = '{}' OR sample_count <= coalesce(:parts ->> ('$.' || bucket_id), sample_count))

-- name: decide_against
UPDATE delivery SET state = :state, decided_at = :now, status = :status, reason = :reason
WHERE destination_id = :destination_id AND bucket_id IN (SELECT value FROM json_each(:bucket_ids))
    AND state NOT IN ('acknowledged', 'partial', 'refused', 'damaged')
    AND (:parts = '{}' OR sample_count <= coalesce(:parts ->> ('$.' || bucket_id), sample_count))

-- name: expire_too_old
UPDATE delivery SET state = 'expired', decided_at = :now, reason = :reason
WHERE destination_id = :destination_id AND state = 'pending' AND segment < :stamped_before
    AND (SELECT timestamp_ms FROM bucket WHERE bucket.id = delivery.bucket_id) < :stamped_before * 1000

-- name: expire
UPDATE delivery SET state = 'expired', decided_at = :now, reason = :reason
WHERE destination_id IN (SELECT id FROM destination WHERE gone_at IS NULL) AND state = 'pending'
    AND segment < :ended_before AND window_end < :ended_before
    AND (job_id IS NULL OR (
        SELECT asked_at < :ended_before AND (state NOT IN ('asked', 'running') OR cancel_asked_at IS NOT NULL)
        FROM job WHERE job.id = delivery.job_id
    ))

-- name: prune_buckets
DELETE FROM bucket WHERE id IN (
    SELECT bucket.id FROM bucket
    WHERE bucket.start < :ended_before AND bucket.start + bucket.width_seconds < :ended_before
        AND NOT EXISTS (
            SELECT 1 FROM delivery JOIN destination ON destination.id = delivery.destination_id
            WHERE delivery.bucket_id = bucket.id AND delivery.state = 'pending' AND destination.gone_at IS NULL
        )
    ORDER BY bucket.start
    LIMIT :most
)

-- name: prune_chapters
DELETE FROM chapter
WHERE number * 64 * width_seconds < :ended_before
    AND NOT EXISTS (
        SELECT 1 FROM bucket
        WHERE bucket.dataset_id = chapter.dataset_id AND bucket.width_seconds = chapter.width_seconds
            AND bucket.start / (64 * bucket.width_seconds) = +chapter.number
    )

-- name: prune_holes
DELETE FROM hole WHERE start < :ended_before AND start + width_seconds < :ended_before

-- name: prove_writable
UPDATE destination SET name = name WHERE id = (SELECT min(id) FROM destination)

-- name: add_job
INSERT INTO job (kind, arguments, reason, asked_by, asked_at, state, progress)
VALUES (:kind, :arguments, :reason, :asked_by, :now, 'asked', :progress)
RETURNING id

-- name: job
SELECT id, kind, arguments, reason, asked_by, asked_at, state, progress, cancel_asked_at, finished_at, result
FROM job WHERE id = :id

-- name: newest_jobs
SELECT id, kind, arguments, reason, asked_by, asked_at, state, progress, cancel_asked_at, finished_at, result
FROM job ORDER BY id DESC LIMIT :most

-- name: open_jobs
SELECT id, kind, arguments, reason, asked_by, asked_at, state, progress, cancel_asked_at, finished_at, result
FROM job WHERE state IN ('asked', 'running') ORDER BY id

-- name: ask_to_cancel
UPDATE job SET cancel_asked_at = coalesce(cancel_asked_at, :now) WHERE id = :id AND state IN ('asked', 'running')

-- name: keep_progress
UPDATE job SET state = 'running', progress = :progress, result = :result
WHERE id = :id AND state IN ('asked', 'running')

-- name: finish_job
UPDATE job SET state = :state, progress = :progress, finished_at = :now, result = :result WHERE id = :id

-- name: resend_plan
SELECT
    destination.name, coalesce(delivery.state, 'never queued') AS state, count(*), sum(length(bucket.sample_values) / 8)
FROM bucket
JOIN scope ON scope.id = bucket.scope_id
JOIN dataset ON dataset.id = bucket.dataset_id
JOIN destination ON destination.gone_at IS NULL
LEFT JOIN delivery ON delivery.bucket_id = bucket.id AND delivery.destination_id = destination.id
WHERE bucket.start >= :since AND bucket.start < :until AND length(bucket.sample_values) > 0
    AND (:zones = '[]' OR EXISTS (SELECT 1 FROM json_each(:zones) WHERE value IN (scope.name, scope.tag)))
    AND (:datasets = '[]' OR dataset.name IN (SELECT value FROM json_each(:datasets)))
    AND (:destinations = '[]' OR destination.name IN (SELECT value FROM json_each(:destinations)))
GROUP BY destination.name, state
ORDER BY destination.name, state

-- name: resend_stamped_before
SELECT count(*)
FROM bucket
JOIN scope ON scope.id = bucket.scope_id
JOIN dataset ON dataset.id = bucket.dataset_id
WHERE bucket.start >= :since AND bucket.start < :until AND length(bucket.sample_values) > 0
    AND bucket.timestamp_ms < :stamped_before_ms
    AND (:zones = '[]' OR EXISTS (SELECT 1 FROM json_each(:zones) WHERE value IN (scope.name, scope.tag)))
    AND (:datasets = '[]' OR dataset.name IN (SELECT value FROM json_each(:datasets)))

-- name: resent
SELECT destination.name, delivery.state, count(*), sum(delivery.sample_count)
FROM delivery JOIN destination ON destination.id = delivery.destination_id
WHERE delivery.job_id = :job_id
GROUP BY destination.name, delivery.state
ORDER BY destination.name, delivery.state

-- name: pending_of_job
SELECT count(*) FROM delivery JOIN destination ON destination.id = delivery.destination_id
WHERE delivery.job_id = :job_id AND delivery.state = 'pending' AND destination.gone_at IS NULL

-- name: pending_between
SELECT destination.name, 'pending', count(*), sum(delivery.sample_count)
FROM destination
CROSS JOIN delivery ON delivery.destination_id = destination.id
CROSS JOIN bucket ON bucket.id = delivery.bucket_id
CROSS JOIN scope ON scope.id = bucket.scope_id
CROSS JOIN dataset ON dataset.id = bucket.dataset_id
WHERE destination.gone_at IS NULL AND delivery.state = 'pending'
    AND delivery.start >= :since AND delivery.start < :until
    AND (:zones = '[]' OR EXISTS (SELECT 1 FROM json_each(:zones) WHERE value IN (scope.name, scope.tag)))
    AND (:datasets = '[]' OR dataset.name IN (SELECT value FROM json_each(:datasets)))
    AND (:destinations = '[]' OR destination.name IN (SELECT value FROM json_each(:destinations)))
GROUP BY destination.id
ORDER BY destination.name

-- name: not_delivered_of_job
SELECT
    destination.name, delivery.state, count(*) AS buckets, max(delivery.decided_at), delivery.status,
    coalesce(delivery.reason, '') AS reason
FROM delivery JOIN destination ON destination.id = delivery.destination_id
WHERE delivery.job_id = :job_id AND delivery.state IN ('partial', 'refused', 'expired', 'damaged')
GROUP BY destination.name, delivery.state, delivery.status, reason
ORDER BY buckets DESC, destination.name, delivery.state, reason
LIMIT :most

-- name: scopes_named
SELECT id FROM scope WHERE name IN (SELECT value FROM json_each(:names)) OR tag IN (SELECT value FROM json_each(:names))

-- name: datasets_named
SELECT id FROM dataset WHERE name IN (SELECT value FROM json_each(:names))

-- name: captured_from
SELECT id, start, scope_id, dataset_id, CASE WHEN :with_series THEN CAST(series_ids AS BLOB) END
FROM bucket
WHERE (start, id) > (:start, :bucket_id) AND start < :until
ORDER BY start, id
LIMIT :most

-- Every scope of each dataset that has buckets, whether it has any itself or not.
-- name: next_pair
WITH pair (dataset_id, scope_id) AS (
    SELECT :dataset_id, (SELECT min(id) FROM scope WHERE id > :scope_id)
    UNION ALL
    SELECT (SELECT min(dataset_id) FROM chapter WHERE dataset_id > :dataset_id), (SELECT min(id) FROM scope)
)
SELECT dataset_id, scope_id FROM pair WHERE dataset_id > 0 AND scope_id IS NOT NULL LIMIT 1

-- Of a dataset, whichever scope has any: whether this one does the look into the chapters of the time tells.
-- name: next_width
SELECT min(width_seconds) FROM chapter WHERE dataset_id = :dataset_id AND width_seconds > :width_seconds

-- Of one width the index has them in order: whoever needs the first ones reads no others.
-- name: windows_of_pair
SELECT id, start, length(sample_values) / 8 FROM captured
WHERE dataset_id = :dataset_id AND scope_id = :scope_id AND width_seconds = :width_seconds
    AND chapter BETWEEN :since / (64 * :width_seconds) AND :until / (64 * :width_seconds)
    AND start >= :since AND start < :until AND length(sample_values) > 0
ORDER BY chapter, start

-- name: held
SELECT
    bucket.id, scope.name, coalesce(delivery.state, 'never queued'), delivery.decided_at,
    bucket.dataset_id, bucket.scope_id, bucket.width_seconds, bucket.start, bucket.timestamp_ms,
    CAST(bucket.series_ids AS BLOB), CAST(bucket.sample_values AS BLOB), bucket.checksum
FROM json_each(:bucket_ids) AS wanted
CROSS JOIN bucket ON bucket.id = wanted.value
JOIN scope ON scope.id = bucket.scope_id
LEFT JOIN delivery ON delivery.bucket_id = bucket.id AND delivery.destination_id = :destination_id

-- What a destination has is acknowledged, whichever way it got there.
-- name: record_read_back
INSERT INTO delivery
    (bucket_id, destination_id, state, segment, scope_id, start, window_end, sample_count, decided_at, reason)
SELECT
    bucket.id, destination.id, 'acknowledged',
    bucket.start - bucket.start % max(bucket.width_seconds, destination.segment_seconds),
    bucket.scope_id, bucket.start, bucket.start + bucket.width_seconds, length(bucket.sample_values) / 8, :now, :reason
FROM json_each(:pairs) AS pair
CROSS JOIN bucket ON bucket.id = pair.value ->> 0
CROSS JOIN destination ON destination.id = pair.value ->> 1
WHERE true
ON CONFLICT DO UPDATE SET
    state = 'acknowledged', sample_count = excluded.sample_count, decided_at = excluded.decided_at, status = NULL,
    reason = excluded.reason

-- The windows of the last day or so, newest first, until one is found.
-- name: newest_acknowledged
SELECT dataset.name, scope.tag, bucket.start
FROM destination
CROSS JOIN bucket ON bucket.start >= :since
CROSS JOIN delivery ON delivery.bucket_id = bucket.id AND delivery.destination_id = destination.id
CROSS JOIN dataset ON dataset.id = bucket.dataset_id
CROSS JOIN scope ON scope.id = bucket.scope_id
WHERE destination.name = :destination AND delivery.state = 'acknowledged'
ORDER BY bucket.start DESC
LIMIT 1

-- name: candidates
SELECT
    bucket.id, destination.id, destination.name, coalesce(delivery.state, 'never queued'),
    length(bucket.sample_values) / 8
FROM json_each(:bucket_ids) AS wanted
CROSS JOIN bucket ON bucket.id = wanted.value
CROSS JOIN destination
LEFT JOIN delivery ON delivery.bucket_id = bucket.id AND delivery.destination_id = destination.id
WHERE length(bucket.sample_values) > 0 AND destination.gone_at IS NULL
    AND (:destinations = '[]' OR destination.name IN (SELECT value FROM json_each(:destinations)))

-- name: enqueue_again
INSERT INTO delivery (bucket_id, destination_id, state, segment, scope_id, start, window_end, sample_count, job_id)
SELECT
    bucket.id, destination.id, 'pending',
    bucket.start - bucket.start % max(bucket.width_seconds, destination.segment_seconds),
    bucket.scope_id, bucket.start, bucket.start + bucket.width_seconds, length(bucket.sample_values) / 8, :job_id
FROM json_each(:pairs) AS pair
CROSS JOIN bucket ON bucket.id = pair.value ->> 0
CROSS JOIN destination ON destination.id = pair.value ->> 1
WHERE true
ON CONFLICT DO UPDATE SET
    state = 'pending', segment = excluded.segment, sample_count = excluded.sample_count, job_id = excluded.job_id,
    decided_at = NULL, status = NULL, reason = NULL

-- name: refused_of
SELECT
    refusal.bucket_id, refusal.destination_id, CAST(refusal.series_ids AS BLOB), refusal.status, refusal.reason,
    refusal.refused_at
FROM json_each(:pairs) AS pair
CROSS JOIN refusal ON refusal.bucket_id = pair.value ->> 0 AND refusal.destination_id = pair.value ->> 1

-- name: forget_refusals
DELETE FROM refusal WHERE (bucket_id, destination_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:pairs))

-- name: keep_refusal
INSERT INTO refusal (destination_id, bucket_id, series_ids, status, reason, refused_at)
VALUES (:destination_id, :bucket_id, :series_ids, :status, :reason, :refused_at)

-- name: forget_parts
DELETE FROM part WHERE (bucket_id, destination_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:pairs))

-- name: parts_among
SELECT bucket_id FROM part
WHERE bucket_id IN (SELECT value FROM json_each(:bucket_ids)) AND destination_id = :destination_id

-- name: add_part
INSERT INTO part (bucket_id, destination_id, series_ids) VALUES (:bucket_id, :destination_id, :series_ids)

-- name: count_part
UPDATE delivery SET sample_count = :samples WHERE bucket_id = :bucket_id AND destination_id = :destination_id

-- name: not_delivered_between
SELECT
    destination.name, dataset.name, scope.tag, scope.name, bucket.width_seconds, delivery.state, delivery.status,
    coalesce(delivery.reason, '') AS why, min(delivery.start), max(delivery.window_end), count(*)
FROM destination
CROSS JOIN delivery ON delivery.destination_id = destination.id
CROSS JOIN bucket ON bucket.id = delivery.bucket_id
CROSS JOIN dataset ON dataset.id = bucket.dataset_id
CROSS JOIN scope ON scope.id = bucket.scope_id
WHERE destination.gone_at IS NULL
    AND (delivery.state = 'partial' OR delivery.state = 'refused' OR delivery.state = 'expired' OR delivery.state = 'damaged')
    AND delivery.start >= :since AND delivery.start < :until
GROUP BY destination.id, dataset.id, scope.id, bucket.width_seconds, delivery.state, delivery.status, why

-- name: backlogs
SELECT destination.name, count(delivery.bucket_id), coalesce(sum(delivery.sample_count), 0), min(delivery.window_end)
FROM destination
LEFT JOIN delivery ON delivery.destination_id = destination.id AND delivery.state = 'pending'
WHERE destination.gone_at IS NULL
GROUP BY destination.id
ORDER BY destination.name

-- name: delivery_counts
WITH counted (destination_id, state, buckets) AS (
    SELECT destination_id, 'pending', count(*) FROM delivery WHERE state = 'pending' GROUP BY destination_id
    UNION ALL
    SELECT destination_id, 'acknowledged', count(*) FROM delivery WHERE state = 'acknowledged' GROUP BY destination_id
    UNION ALL
    SELECT destination_id, state, count(*) FROM delivery
    WHERE state = 'partial' OR state = 'refused' OR state = 'expired' OR state = 'damaged'
    GROUP BY destination_id, state
)
SELECT destination.name, counted.state, counted.buckets, destination.gone_at IS NOT NULL
FROM counted JOIN destination ON destination.id = counted.destination_id
ORDER BY destination.name, counted.state

-- name: undelivered
SELECT destination.name, delivery.state, count(*), max(delivery.decided_at), delivery.status, coalesce(delivery.reason, '')
FROM delivery JOIN destination ON destination.id = delivery.destination_id
WHERE delivery.state = 'partial' OR delivery.state = 'refused' OR delivery.state = 'expired' OR delivery.state = 'damaged'
GROUP BY destination.id, delivery.state
ORDER BY destination.name, delivery.state

-- name: refused_samples
SELECT destination.name, count(DISTINCT refusal.bucket_id), sum(length(refusal.series_ids) / 4)
FROM destination JOIN refusal ON refusal.destination_id = destination.id
GROUP BY destination.id
ORDER BY destination.name

-- name: newest_refusals
SELECT
    destination.name, refusal.bucket_id, CAST(refusal.series_ids AS BLOB), bucket.timestamp_ms, refusal.status,
    refusal.reason, refusal.refused_at
FROM refusal
JOIN destination ON destination.id = refusal.destination_id
JOIN bucket ON bucket.id = refusal.bucket_id
WHERE destination.name = :destination
ORDER BY refusal.rowid DESC
LIMIT :most

-- name: scope_reports
-- Materialized, as SQLite would otherwise reckon the end of the stretch anew for each count.
WITH bounds AS MATERIALIZED (
    SELECT
        expectation.dataset_id, expectation.scope_id, expectation.width_seconds,
        -- A window belongs to the stretch while its end lies inside it.
        max(expectation.from_start, :since / expectation.width_seconds * expectation.width_seconds) AS first_start,
        -- Of a scope that has gone, the windows that were not final then are not expected any more.
        -- The same of a dataset that is denied.
        (
            min(
                :final_until, coalesce(scope.gone_at - :delay_seconds, :final_until),
                coalesce(denial.denied_at - :delay_seconds, :final_until)
            ) - coalesce((SELECT value FROM json_each(:further_delays) WHERE key = dataset.name), 0)
        ) AS final_until,
        expectation.until,
        denial.detail AS denied
    FROM expectation
    JOIN scope ON scope.id = expectation.scope_id
    JOIN dataset ON dataset.id = expectation.dataset_id
    LEFT JOIN denial ON denial.dataset_id = expectation.dataset_id AND denial.scope_id = expectation.scope_id
), reach AS (
    SELECT
        dataset_id, scope_id, width_seconds, first_start, denied,
        min(final_until, coalesce(until, final_until)) / width_seconds * width_seconds AS after_last,
        first_start / (64 * width_seconds) AS first_chapter,
        min(final_until, coalesce(until, final_until)) / (64 * width_seconds) AS last_chapter
    FROM bounds
)
SELECT
    dataset.name, scope.tag, scope.name, scope.account_name, reach.width_seconds, scope.gone_at IS NOT NULL,
    max(0, (reach.after_last - reach.first_start) / reach.width_seconds),
    (
        SELECT count(*) FROM captured
        WHERE captured.dataset_id = reach.dataset_id AND captured.scope_id = reach.scope_id
            AND captured.width_seconds = reach.width_seconds
            AND captured.chapter BETWEEN reach.first_chapter AND reach.last_chapter
            AND captured.start >= reach.first_start AND captured.start < reach.after_last
    ),
    CASE WHEN :with_deliveries THEN (
        SELECT count(*) FROM captured
        WHERE captured.dataset_id = reach.dataset_id AND captured.scope_id = reach.scope_id
            AND captured.width_seconds = reach.width_seconds
            AND captured.chapter BETWEEN reach.first_chapter AND reach.last_chapter
            AND captured.start >= reach.first_start AND captured.start < reach.after_last
            AND NOT EXISTS (
                SELECT 1 FROM destination
                LEFT JOIN delivery ON delivery.bucket_id = captured.id AND delivery.destination_id = destination.id
                WHERE destination.gone_at IS NULL AND delivery.state IS NOT 'acknowledged'
                    AND length(captured.sample_values) > 0
            )
    ) END,
    (
        SELECT captured.start + reach.width_seconds FROM captured
        WHERE captured.dataset_id = reach.dataset_id AND captured.scope_id = reach.scope_id
            AND captured.width_seconds = reach.width_seconds
        ORDER BY captured.chapter DESC, captured.start DESC LIMIT 1
    ),
    (
        SELECT count(*) FROM hole
        WHERE hole.dataset_id = reach.dataset_id AND hole.scope_id = reach.scope_id
            AND hole.width_seconds = reach.width_seconds
            AND hole.start >= reach.first_start AND hole.start < reach.after_last
    ),
    (
        SELECT hole.reason FROM hole
        WHERE hole.dataset_id = reach.dataset_id AND hole.scope_id = reach.scope_id
            AND hole.width_seconds = reach.width_seconds AND hole.start >= reach.first_start
        ORDER BY hole.start DESC LIMIT 1
    ),
    (
        SELECT hole.detail FROM hole
        WHERE hole.dataset_id = reach.dataset_id AND hole.scope_id = reach.scope_id
            AND hole.width_seconds = reach.width_seconds AND hole.start >= reach.first_start
        ORDER BY hole.start DESC LIMIT 1
    ),
    reach.denied
FROM reach
JOIN dataset ON dataset.id = reach.dataset_id
JOIN scope ON scope.id = reach.scope_id
ORDER BY dataset.name, scope.name, scope.tag, reach.width_seconds

-- One look for each scope: whichever has the newest window has it in the newest chapter.
-- name: newest_captured
SELECT name, newest_end
FROM (
    SELECT dataset.name, max(
        (
            SELECT captured.start FROM captured
            WHERE captured.dataset_id = expectation.dataset_id AND captured.scope_id = expectation.scope_id
                AND captured.width_seconds = expectation.width_seconds
                AND captured.chapter = (
                    SELECT max(number) FROM chapter
                    WHERE chapter.dataset_id = expectation.dataset_id
                        AND chapter.width_seconds = expectation.width_seconds
                )
            ORDER BY captured.start DESC LIMIT 1
        ) + expectation.width_seconds
    ) AS newest_end
    FROM expectation JOIN dataset ON dataset.id = expectation.dataset_id
    GROUP BY dataset.id
)
WHERE newest_end IS NOT NULL

-- name: hole_counts
SELECT dataset.name, hole.reason, count(*)
FROM hole JOIN dataset ON dataset.id = hole.dataset_id
WHERE hole.start > :since - 86400 AND hole.start + hole.width_seconds > :since
GROUP BY dataset.id, hole.reason

-- name: drifted_buckets
SELECT dataset.name, count(*)
FROM drift CROSS JOIN bucket ON bucket.id = drift.bucket_id CROSS JOIN dataset ON dataset.id = bucket.dataset_id
GROUP BY dataset.id

-- name: covered
SELECT (SELECT min(start) FROM bucket), (SELECT max(start) FROM bucket)

-- name: newest_bucket
SELECT max(id) FROM bucket

-- name: captured_at_from
SELECT captured_at FROM bucket WHERE id >= :id ORDER BY id LIMIT 1

-- name: captured_after
SELECT bucket.id, dataset.name, scope.tag, bucket.width_seconds, bucket.start, bucket.captured_at
FROM bucket
CROSS JOIN dataset ON dataset.id = bucket.dataset_id
CROSS JOIN scope ON scope.id = bucket.scope_id
WHERE bucket.id > :after_id
ORDER BY bucket.id
LIMIT :most

-- name: readings_of
SELECT after_seconds FROM reading WHERE bucket_id = :bucket_id

-- name: whole_bucket
SELECT
    dataset_id, scope_id, width_seconds, start, timestamp_ms,
    CAST(series_ids AS BLOB), CAST(sample_values AS BLOB), checksum
FROM bucket WHERE id = :id

-- name: record_reading
INSERT INTO reading (bucket_id, after_seconds, dataset_id, read_at, samples_differing, relative_difference)
SELECT id, :after_seconds, dataset_id, :now, :samples_differing, :relative_difference
FROM bucket WHERE id = :bucket_id
ON CONFLICT DO NOTHING

-- name: newest_readings
SELECT
    reading.bucket_id, bucket.captured_at - bucket.start - bucket.width_seconds, reading.after_seconds,
    reading.samples_differing, reading.relative_difference
FROM reading CROSS JOIN bucket ON bucket.id = reading.bucket_id
WHERE reading.dataset_id = (SELECT id FROM dataset WHERE name = :dataset)
ORDER BY reading.bucket_id DESC
LIMIT :most

-- name: denied
SELECT dataset.name, scope.tag, scope.name, denial.denied_at, denial.detail
FROM denial
JOIN dataset ON dataset.id = denial.dataset_id
JOIN scope ON scope.id = denial.scope_id
WHERE scope.gone_at IS NULL
ORDER BY dataset.name, scope.name, scope.tag

-- name: denied_alike
SELECT
    dataset.name, denial.detail,
    json_group_array(json_array(scope.tag, scope.name, denial.denied_at) ORDER BY scope.name, scope.tag)
FROM denial
JOIN dataset ON dataset.id = denial.dataset_id
JOIN scope ON scope.id = denial.scope_id
WHERE scope.gone_at IS NULL
GROUP BY dataset.name, denial.detail

-- name: denied_counts
SELECT dataset.name, count(*)
FROM denial
JOIN dataset ON dataset.id = denial.dataset_id
JOIN scope ON scope.id = denial.scope_id
WHERE scope.gone_at IS NULL
GROUP BY dataset.id

-- name: deny
INSERT INTO denial (dataset_id, scope_id, denied_at, detail) VALUES (:dataset_id, :scope_id, :now, :detail)
ON CONFLICT DO UPDATE SET detail = excluded.detail

-- name: grant
DELETE FROM denial WHERE dataset_id = :dataset_id AND scope_id = :scope_id

-- Every dataset with every scope and width: of each the chapters of the time tell whether there is a bucket.
-- name: captured_scopes
SELECT dataset.name, scope.tag, scope.name, json_group_array(width.value)
FROM dataset CROSS JOIN scope CROSS JOIN json_each(:widths) AS width
WHERE EXISTS (
        SELECT 1 FROM captured
        WHERE captured.dataset_id = dataset.id AND captured.scope_id = scope.id AND captured.width_seconds = width.value
            AND captured.chapter BETWEEN :since / (64 * width.value) AND :until / (64 * width.value)
            AND captured.start >= :since AND captured.start < :until
    )
    AND (:zones = '[]' OR EXISTS (SELECT 1 FROM json_each(:zones) WHERE value IN (scope.name, scope.tag)))
    AND (:datasets = '[]' OR dataset.name IN (SELECT value FROM json_each(:datasets)))
GROUP BY dataset.name, scope.id
ORDER BY dataset.name, scope.id

-- name: captured_buckets
SELECT
    captured.id, captured.dataset_id, captured.scope_id, captured.width_seconds, captured.start, captured.timestamp_ms,
    CAST(captured.series_ids AS BLOB), CAST(captured.sample_values AS BLOB), captured.checksum,
    CASE WHEN delivery.state = 'partial' THEN (
        SELECT json_group_array(hex(refusal.series_ids)) FROM refusal
        WHERE refusal.bucket_id = captured.id AND refusal.destination_id = delivery.destination_id
    ) END
FROM json_each(:widths) AS width
CROSS JOIN captured
    ON captured.dataset_id = (SELECT id FROM dataset WHERE name = :dataset)
    AND captured.scope_id = (SELECT id FROM scope WHERE tag = :tag)
    AND captured.width_seconds = width.value
    AND captured.start >= :since AND captured.start < :until
    -- A window carries a timestamp of its own, and is no longer than a day.
    AND captured.start > :from_ms / 1000 - 86401 AND captured.start < :before_ms / 1000 + 1
    AND captured.chapter BETWEEN max(:since, :from_ms / 1000 - 86401) / (64 * width.value)
        AND min(:until, :before_ms / 1000 + 1) / (64 * width.value)
LEFT JOIN delivery
    ON delivery.bucket_id = captured.id
    AND delivery.destination_id = (SELECT id FROM destination WHERE name = :destination)
WHERE captured.timestamp_ms >= :from_ms AND captured.timestamp_ms < :before_ms AND length(captured.sample_values) > 0
    AND (:destination IS NULL OR coalesce(delivery.state, 'expired') IN ('partial', 'refused', 'expired'))
ORDER BY captured.timestamp_ms, captured.id

-- name: all_scopes
SELECT tag, name, account_tag, account_name, plan FROM scope ORDER BY name, tag

-- name: overlapping_widths
SELECT EXISTS (
    SELECT 1 FROM json_each(:widths) AS width CROSS JOIN captured
    WHERE captured.dataset_id = :dataset_id AND captured.scope_id = :scope_id AND captured.width_seconds = width.value
        AND width.value != :width_seconds
        AND captured.start > :start - width.value AND captured.start < :start + :width_seconds
        AND captured.chapter BETWEEN (:start - width.value) / (64 * width.value)
            AND (:start + :width_seconds) / (64 * width.value)
)

-- name: begin_staging
UPDATE job SET state = 'staging' WHERE id = :id

-- name: is_staging
SELECT state = 'staging' FROM job WHERE id = :id

-- name: stage
INSERT INTO staged
    (job_id, dataset_id, scope_id, width_seconds, start, timestamp_ms, series_ids, sample_values, checksum)
VALUES
    (:job_id, :dataset_id, :scope_id, :width_seconds, :start, :timestamp_ms, :series_ids, :sample_values, :checksum)

-- name: release
UPDATE job SET state = 'asked', asked_at = :now WHERE id = :id AND state = 'staging'

-- name: staged
SELECT
    staged.id, dataset.name, scope.tag, staged.dataset_id, staged.scope_id, staged.width_seconds, staged.start,
    staged.timestamp_ms, CAST(staged.series_ids AS BLOB), CAST(staged.sample_values AS BLOB), staged.checksum
FROM staged
CROSS JOIN dataset ON dataset.id = staged.dataset_id
CROSS JOIN scope ON scope.id = staged.scope_id
WHERE staged.job_id = :job_id
ORDER BY staged.id
LIMIT :most

-- name: unstage
DELETE FROM staged WHERE id = :id

-- An import has rows here from its beginning on.
-- name: give_up_staging
UPDATE job SET state = :state, finished_at = :now, progress = json_set(progress, '$.note', :note)
WHERE id IN (SELECT job_id FROM staged) AND state = 'staging' AND asked_at < :begun_before

-- name: delete_unstaged
DELETE FROM staged WHERE id IN (
    SELECT staged.id FROM staged CROSS JOIN job ON job.id = staged.job_id
    WHERE job.state NOT IN ('staging', 'asked', 'running')
    LIMIT :most
)
