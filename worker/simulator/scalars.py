"""The scalars of Cloudflare's schema: what each accepts, and which one a dimension or a number has.

Most dimensions are strings and most numbers uint64 (averages float64); the tables hold what is otherwise, as far as a
catalogue has use for it. Names mean the same on every node but a few, which have a table of their own.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

Value = str | int | float


def dimension_scalar(node: str, dimension: str) -> str:
    """The scalar of a dimension that is not one of time."""
    return _OF_A_NODE.get((node, dimension)) or _DIMENSIONS.get(dimension, "string")


def number_scalar(node: str, path: tuple[str, ...]) -> str:
    """The scalar of a number at `path` in a row, for example ("sum", "requests")."""
    field = ".".join(path)
    usual = {"sum": "uint64", "count": "uint64", "uniq": "uint64"}.get(path[0], "float64")
    return _OF_A_NODE.get((node, field)) or _NUMBERS.get(field, usual)


def _by_name(names: Mapping[str, str]) -> dict[str, str]:
    return {name: scalar for scalar, listed in names.items() for name in listed.split()}


_DIMENSIONS = _by_name(
    {
        "uint8": "active bot botScore botScoreBucketBy10 cacheReserveUsed cached clientIPVersion final hasExistingJWT"
        " hasGatewayEnabled hasWarpEnabled healthChanged icmpType ipProtocol ipVersion isCrossZoneSubrequest"
        " isDispatcher isNDR isSpam isSuccessfulLogin multipleOriginsSelected placementUsed proxied"
        " quarantined rateLimited responseCached responseStale selectedPoolHealthy success tcpFlags"
        " wafAttackScore wholesale",
        "uint16": "categoryId destinationPort edgeDnsResponseTimeMs edgeResponseStatus ethertype httpStatus"
        " internalDnsRCode isIsolated matchIndex numberOriginsSelected originResponseStatus resolverDecision"
        " responseStatusCode selectedOriginIndex sourcePort statusCode transportProtocol",
        "uint32": "asn clientIPASN destinationAsn originASN sampleInterval selectedPoolIndex sourceAsn spamScore"
        " spamThreshold trafficPath",
        "uint64": "jobId operation originResponseDurationMs rttMs selectedPoolAvgRttMs zoneVersion",
        "float64": "customResolverResponseCode httpStatusCode",
    }
)
_NUMBERS = _by_name(
    {
        "uint16": "max.activeWebsocketConnections",
        "uint32": "avg.retryCount avg.tcpConnMs avg.timeToFirstByteMs avg.tlsHandshakeMs max.latencyMs max.messageSize"
        " max.objectBytes sum.executionDuration sum.retryCount sum.standardCpuTimeUs sum.stepCount",
        "uint64": "avg.avgCpuTime avg.connectionLatency avg.customResolverTimeInMs avg.lagTime avg.messages"
        " avg.queryBytes avg.queryLatency avg.requestDurationMs avg.resultBytes avg.rowsRead avg.rowsReturned"
        " avg.rowsWritten avg.rttMs max.byteCount max.databaseSizeBytes max.diskAvailable max.diskUsage"
        " max.keyCount max.maxConcurrentSessions max.maxSessionDurationMs max.metadataSize max.objectCount"
        " max.payloadSize max.rows max.rxBytes max.storedBytes max.storedVectorDimensions max.txBytes"
        " max.uploadCount max.vectorCount",
        "int64": "avg.newUsersPerMinute avg.sessionsRevoked avg.totalActiveUsers avg.totalQueuedUsers"
        " max.maxEstimatedTimeMinutes max.newUsersPerMinute max.newUsersPerMinuteConfig max.sessionDuration"
        " max.totalActiveUsers max.totalActiveUsersConfig max.totalQueuedUsers sum.bytesIn sum.bytesWritten"
        " sum.connectReqHandlingDurationUs sum.decodeErrors sum.egressBytes sum.filesWritten sum.ingressBytes"
        " sum.newUsersPerMinute sum.recordsIn sum.recordsWritten sum.rowGroupsWritten sum.sessionsRevoked"
        " sum.tokenAuthDurationUs sum.totalTunnelSetupDurationUs sum.tunnelSetupDurationUs"
        " sum.turnstileFailures sum.turnstileInfiniteQueueRefreshes sum.turnstileIssued sum.turnstileSuccesses"
        " sum.turnstileUnsolved sum.uncompressedBytesWritten",
        "float32": "avg.tunnelState",
        "float64": "sum.buildMinutes sum.cost sum.duration sum.failures sum.queryBatchResponseBytes sum.queryDurationMs"
        " sum.total sum.totalAudioSeconds sum.totalCostMetricValue1 sum.totalCostMetricValue2"
        " sum.totalInferenceSteps sum.totalInputLength sum.totalInputTokens sum.totalNeurons"
        " sum.totalOutputTokens sum.totalProcessedPixels sum.totalProcessedTiles sum.totalTiles"
        " sum.unboundDurationUs",
    }
)
# By node and dimension, or node and number.
_OF_A_NODE = {
    ("aiGatewayRequestsAdaptiveGroups", "error"): "uint8",
    ("aiInferenceAdaptiveGroups", "errorCode"): "uint32",
    ("browserRenderingApiAdaptiveGroups", "status"): "uint64",
    ("gatewayL4SessionsAdaptiveGroups", "transport"): "uint16",
    ("gatewayResolverByCustomResolverGroups", "cacheStatus"): "uint8",
    ("logpushHealthAdaptiveGroups", "status"): "uint16",
    ("nelReportsAdaptiveGroups", "avg.sampleInterval"): "uint64",
    ("queueBacklogAdaptiveGroups", "avg.bytes"): "uint64",
    ("sippyOperationsAdaptiveGroups", "status"): "uint16",
    ("workersInvocationsAdaptive", "sum.requestDuration"): "float64",
    ("workersOverviewDataAdaptiveGroups", "usageModel"): "uint8",
    ("workersOverviewRequestsAdaptiveGroups", "status"): "uint8",
    ("workersOverviewRequestsAdaptiveGroups", "sum.cpuTimeUs"): "float64",
    ("workersOverviewRequestsAdaptiveGroups", "usageModel"): "uint8",
    ("workersSubrequestsAdaptiveGroups", "cacheStatus"): "uint64",
    ("workersSubrequestsAdaptiveGroups", "httpResponseStatus"): "uint64",
    ("workersZoneInvocationsAdaptiveGroups", "httpResponseStatus"): "uint16",
    ("workersZoneSubrequestsAdaptiveGroups", "cacheStatus"): "uint64",
    ("workersZoneSubrequestsAdaptiveGroups", "httpResponseStatus"): "uint64",
    ("workflowsAdaptiveGroups", "sum.cpuTime"): "uint32",
    ("zarazFetchAdaptiveGroups", "status"): "uint32",
}


def _integer(lowest: int, highest: int) -> Callable[[Any], int | None]:
    def parse(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest else None

    return parse


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


# RFC 3339, section 5.6; `fromisoformat` alone takes more than that.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def _time(value: Any) -> float | None:
    """Unix seconds."""
    return _moment(value) if isinstance(value, str) and _TIME.fullmatch(value) else None


def _date(value: Any) -> float | None:
    """Unix seconds of its midnight in UTC."""
    return _moment(f"{value}T00:00:00Z") if isinstance(value, str) and _DATE.fullmatch(value) else None


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # the 30th of February
        return None


SCALARS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "Date": ("a date like 2026-02-22", _date),
    "Time": ("a time like 2026-02-22T20:00:00Z", _time),
    "bool": ("true or false", _bool),
    "float32": ("a number", _float),
    "float64": ("a number", _float),
    "int64": ("an integer of 64 bits", _integer(-(2**63), 2**63 - 1)),
    "string": ("a string", _string),
    **{
        f"uint{bits}": (f"an integer of {bits} bits that is not negative", _integer(0, 2**bits - 1))
        for bits in (8, 16, 32, 64)
    },
}
"""What each scalar accepts, in words and as a function that gives None for anything else."""
