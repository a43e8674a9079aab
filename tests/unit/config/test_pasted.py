"""Blocks as the receivers' own documents tell people to write them into prometheus.yml."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.config.loading import URL, load_list, mistakes_in
from worker.config import (
    AzureAdSettings,
    AzureCertificate,
    AzureManagedIdentity,
    AzureOAuth,
    AzureSdk,
    AzureWorkloadIdentity,
    BasicAuth,
    DestinationSettings,
    Message,
    OAuth2Settings,
    ProxySettings,
    QueueSettings,
    RelabelRule,
    SecretFile,
    SigV4Settings,
    TlsSettings,
)
from worker.config.relabel_rules import RelabelAction

CLIENT = "00000000-0000-0000-0000-00000000000a"
TENANT = "00000000-0000-0000-0000-00000000000b"


def test_grafana_cloud(tmp_path: Path) -> None:
    text = """
        global:
          scrape_interval: 60s
        remote_write:
          - url: https://prometheus-prod-01-eu-west-0.grafana.net/api/prom/push
            basic_auth:
              username: 123456
              password: glc_eyJvIjoi
    """
    assert load_list(tmp_path, text) == (
        DestinationSettings(
            name="prometheus-prod-01-eu-west-0.grafana.net",
            url="https://prometheus-prod-01-eu-west-0.grafana.net/api/prom/push",
            basic_auth=BasicAuth(username="123456", password=SecretStr("glc_eyJvIjoi")),
        ),
    )


def test_amazon_managed_service_for_prometheus(tmp_path: Path) -> None:
    text = """
        remote_write:
          - url: https://aps-workspaces.eu-central-1.amazonaws.com/workspaces/ws-1234/api/v1/remote_write
            queue_config:
                max_samples_per_send: 1000
                max_shards: 200
                capacity: 2500
            sigv4:
                 region: eu-central-1
                 role_arn: arn:aws:iam::123456789012:role/ingest
    """
    [destination] = load_list(tmp_path, text)
    assert destination.sigv4 == SigV4Settings(
        region="eu-central-1", role_arn="arn:aws:iam::123456789012:role/ingest", service_name="aps"
    )
    assert destination.queue == QueueSettings(max_samples_per_send=1000, max_shards=200)


def test_amazon_with_keys_of_its_own(tmp_path: Path) -> None:
    text = f"""
        remote_write:
          - url: {URL}
            sigv4:
              region: us-east-1
              access_key: AKIA
              secret_key: wJalr/XUtn+
              profile: metrics
              role_arn: arn
              external_id: e
              use_fips_sts_endpoint: true
    """
    [destination] = load_list(tmp_path, text)
    assert destination.sigv4 == SigV4Settings(
        region="us-east-1",
        access_key=SecretStr("AKIA"),
        secret_key=SecretStr("wJalr/XUtn+"),
        profile="metrics",
        role_arn="arn",
        external_id="e",
        use_fips_sts_endpoint=True,
    )


def test_amazon_with_what_its_own_programs_find(tmp_path: Path) -> None:
    [destination] = load_list(tmp_path, f"remote_write: [{{url: {URL}, sigv4: {{}}}}]")
    assert destination.sigv4 == SigV4Settings()


def test_azure_monitor_with_a_managed_identity(tmp_path: Path) -> None:
    text = f"""
        remote_write:
          - url: https://ws-abcd.eastus-1.metrics.ingest.monitor.azure.com/dataCollectionRules/dcr-1/streams/Microsoft-PrometheusMetrics/api/v1/write?api-version=2023-04-24
            azuread:
              cloud: 'AzurePublic'
              managed_identity:
                client_id: "{CLIENT}"
    """
    [destination] = load_list(tmp_path, text)
    assert destination.azuread == AzureAdSettings(managed_identity=AzureManagedIdentity(client_id=CLIENT))
    assert destination.name == "ws-abcd.eastus-1.metrics.ingest.monitor.azure.com"


@pytest.mark.parametrize(
    ("block", "settings"),
    [
        ("managed_identity: {}", AzureAdSettings(managed_identity=AzureManagedIdentity())),
        ('managed_identity: {client_id: ""}', AzureAdSettings(managed_identity=AzureManagedIdentity())),
        (
            f"workload_identity: {{client_id: {CLIENT}, tenant_id: {TENANT}}}",
            AzureAdSettings(workload_identity=AzureWorkloadIdentity(client_id=CLIENT, tenant_id=TENANT)),
        ),
        (
            f"oauth: {{client_id: {CLIENT}, client_secret: abc, tenant_id: {TENANT}}}",
            AzureAdSettings(oauth=AzureOAuth(client_id=CLIENT, client_secret=SecretStr("abc"), tenant_id=TENANT)),
        ),
        (
            "{cloud: AzureGovernment, sdk: {}, scope: https://monitor.example//.default}",
            AzureAdSettings(cloud="AzureGovernment", sdk=AzureSdk(), scope="https://monitor.example//.default"),
        ),
    ],
)
def test_azure_monitor_with_another_identity(tmp_path: Path, block: str, settings: AzureAdSettings) -> None:
    inside = block if block.startswith("{") else f"{{{block}}}"
    [destination] = load_list(tmp_path, f"remote_write: [{{url: {URL}, azuread: {inside}}}]")
    assert destination.azuread == settings


def test_azure_monitor_with_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "app.pem").write_text("certificate and key")
    (tmp_path / "password").write_text("abc\n")
    text = f"""
        remote_write:
          - url: {URL}
            azuread:
              certificate:
                client_id: {CLIENT}
                tenant_id: {TENANT}
                certificate_path: app.pem
                certificate_password_file: password
                send_certificate_chain: true
    """
    [destination] = load_list(tmp_path, text)
    assert destination.azuread == AzureAdSettings(
        certificate=AzureCertificate(
            client_id=CLIENT,
            tenant_id=TENANT,
            certificate_path=tmp_path / "app.pem",
            certificate_password=SecretFile(tmp_path / "password"),
            send_certificate_chain=True,
        )
    )


def test_mimir_with_a_tenant_and_two_replicas_of_the_header(tmp_path: Path) -> None:
    text = """
        global:
          external_labels:
            cluster: eu
        remote_write:
          - url: http://mimir:9009/api/v1/push
            headers:
              X-Scope-OrgID: 1
          - url: http://mimir:9009/api/v1/push
            name: second tenant
            http_headers:
              X-Scope-OrgID:
                values: [tenant-b]
    """
    first, second = load_list(tmp_path, text)
    assert first.headers == {"X-Scope-OrgID": SecretStr("1")}
    assert second.headers == {"X-Scope-OrgID": SecretStr("tenant-b")}
    assert first.external_labels == second.external_labels == {"cluster": "eu"}


def test_oauth2_with_tls_and_a_proxy_on_its_own_way(tmp_path: Path) -> None:
    for name in ("client-secret", "issuer-ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_text("abc\n")
    text = """
        remote_write:
          - url: https://thanos.example.org/api/v1/receive
            remote_timeout: 1m
            oauth2:
              client_id: prometheus
              client_secret_file: client-secret
              token_url: https://issuer.example.org/oauth2/token
              scopes:
                - metrics.write
                - openid
              endpoint_params:
                audience: thanos
              tls_config:
                ca_file: issuer-ca.pem
                cert_file: client.pem
                key_file: client.key
                min_version: TLS13
              proxy_url: http://proxy.example.org:3128
            proxy_url: http://user:pa55@proxy.example.org:3129
            no_proxy: 10.0.0.0/8,.internal
            proxy_connect_header:
              Proxy-Authorization: [abc]
    """
    [destination] = load_list(tmp_path, text)
    assert destination.oauth2 == OAuth2Settings(
        client_id="prometheus",
        client_secret=SecretFile(tmp_path / "client-secret"),
        token_url="https://issuer.example.org/oauth2/token",
        scopes=("metrics.write", "openid"),
        endpoint_params={"audience": "thanos"},
        tls=TlsSettings(
            ca_file=tmp_path / "issuer-ca.pem",
            cert_file=tmp_path / "client.pem",
            key_file=tmp_path / "client.key",
            min_version="TLS13",
        ),
        proxy=ProxySettings(proxy_url="http://proxy.example.org:3128"),
    )
    assert destination.proxy == ProxySettings(
        proxy_url="http://user:pa55@proxy.example.org:3129",
        no_proxy="10.0.0.0/8,.internal",
        proxy_connect_header={"Proxy-Authorization": (SecretStr("abc"),)},
    )
    assert destination.tls == TlsSettings()


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"


def test_client_certificates_in_the_file_itself(tmp_path: Path) -> None:
    indented = {
        "ca": CERTIFICATE.replace("\n", "\n" + " " * 16),
        "key": PRIVATE_KEY.replace("\n", "\n" + " " * 16),
    }
    text = f"""
        remote_write:
          - url: https://prometheus.example.org/api/v1/write
            tls_config:
              ca: |
                {indented["ca"]}
              cert: |
                {indented["ca"]}
              key: |
                {indented["key"]}
              max_version: TLS13
    """
    [destination] = load_list(tmp_path, text)
    assert destination.tls == TlsSettings(
        ca=CERTIFICATE, cert=CERTIFICATE, key=SecretStr(PRIVATE_KEY), max_version="TLS13"
    )


def test_relabelling_with_references_to_groups(tmp_path: Path) -> None:
    text = """
        remote_write:
          - url: http://victoriametrics:8428/api/v1/write
            write_relabel_configs:
              - source_labels: [__name__]
                regex: cloudflare_zone_(country|browser)_.*
                action: drop
              - source_labels: [zone]
                regex: (?P<site>[^.]+)\\..*
                target_label: site
                replacement: ${site}
              - action: labeldrop
                regex: zone_id
              - target_label: account
                replacement: ""
    """
    [destination] = load_list(tmp_path, text)
    assert destination.write_relabel_configs == (
        RelabelRule(
            source_labels=("__name__",), regex="cloudflare_zone_(country|browser)_.*", action=RelabelAction.DROP
        ),
        RelabelRule(source_labels=("zone",), regex=r"(?P<site>[^.]+)\..*", target_label="site", replacement="${site}"),
        RelabelRule(action=RelabelAction.LABELDROP, regex="zone_id"),
        RelabelRule(target_label="account", replacement=""),
    )


def test_everything_that_prometheus_shows_of_a_running_configuration(tmp_path: Path) -> None:
    """Prometheus' own page of its configuration spells out every default."""
    text = """
        global:
          scrape_interval: 1m
          scrape_timeout: 10s
          scrape_protocols: [OpenMetricsText1.0.0]
          evaluation_interval: 1m
          metric_name_validation_scheme: utf8
          external_labels:
            region: eu
        remote_write:
        - url: http://localhost:9090/api/v1/write
          remote_timeout: 30s
          protobuf_message: io.prometheus.write.v2.Request
          name: abcdef
          send_exemplars: true
          send_native_histograms: true
          round_robin_dns: false
          follow_redirects: false
          enable_http2: false
          queue_config:
            capacity: 10000
            max_shards: 50
            min_shards: 1
            max_samples_per_send: 2000
            batch_send_deadline: 5s
            min_backoff: 30ms
            max_backoff: 5s
            retry_on_http_429: false
            sample_age_limit: 1h
          metadata_config:
            send: true
            send_interval: 1m
            max_samples_per_send: 2000
    """
    [destination] = load_list(tmp_path, text)
    assert destination.protobuf_message is Message.V2
    assert destination.metadata.send is True
    assert destination.queue == QueueSettings(
        max_samples_per_send=2000,
        min_backoff_seconds=0.03,
        max_backoff_seconds=5,
        retry_on_http_429=False,
        sample_age_limit_seconds=3600,
    )
    assert destination.external_labels == {"region": "eu"}


# ------------------------------------------------------------------------------------------- around the list


def test_external_labels_stand_at_the_top_or_under_global(tmp_path: Path) -> None:
    for text in ("external_labels: {region: eu, empty: ''}\n", "global: {external_labels: {region: eu}}\n"):
        [destination] = load_list(tmp_path, f"{text}remote_write: [{{url: {URL}}}]\n")
        assert destination.external_labels == {"region": "eu"}


def test_a_dollar_sign_in_an_external_label_is_written_as_in_prometheus_3(tmp_path: Path) -> None:
    [destination] = load_list(tmp_path, f"external_labels: {{price: 5$$}}\nremote_write: [{{url: '{URL}'}}]\n")
    assert destination.external_labels == {"price": "5$"}


def test_external_labels_are_of_the_destination_of_the_variables_too(tmp_path: Path) -> None:
    environ = {"CF_API_TOKEN": "token", "REMOTE_WRITE_URL": URL}
    [destination] = load_list(tmp_path, "external_labels: {region: eu}\n", environ)
    assert destination.external_labels == {"region": "eu"}


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("external_labels: [a]", "external_labels (given: a list): must be a mapping of label names to values"),
        (
            "external_labels: {a-b: c}",
            "external_labels (given: a-b): must hold label names of letters, digits and underscores only",
        ),
        (
            "external_labels: {__replica__: a}",
            (
                "external_labels (given: __replica__): must not hold a name that starts with __: those are "
                "Prometheus' own, and __replica__ makes Mimir and Cortex discard what comes from the replica that they "
                "did not elect"
            ),
        ),
        (
            "external_labels: {a: b, host: $HOSTNAME}",
            "external_labels (given: host): must not hold a single $ in a value: Prometheus puts a variable",
        ),
        ("external_labels: {a: [b]}", "external_labels (given: a): must hold a text as the value of each label"),
        ("global: {external_labels: {1: c}}", "global.external_labels (given: 1): must hold label names"),
        ("global: eu", "global: must be a mapping of keys to values"),
        (
            "global: {external_lables: {a: b}}",
            "global.external_lables: is not a known key (did you mean external_labels?)",
        ),
        (
            "external_labels: {a: b}\nglobal: {external_labels: {a: c}}",
            "global.external_labels: cannot be given together with external_labels at the top; keep one of them",
        ),
        (
            "scrape_configs: [{job_name: a}]",
            "scrape_configs: is for Prometheus itself; take over only remote_write, external_labels and global",
        ),
        ("external_labels: {a: '${B}'}", "external_labels.a: holds a ${...} placeholder, and nothing fills it in"),
        (
            f"remote_write: [{{url: {URL}, external_labels: {{a: b}}}}]",
            (
                "remote_write[0].external_labels: is a key of Prometheus that is not supported; write it beside "
                "remote_write, not in it: it is one set for all destinations"
            ),
        ),
    ],
)
def test_mistakes_around_the_list(tmp_path: Path, text: str, mistake: str) -> None:
    remote_write = "" if "remote_write:" in text else f"remote_write: [{{url: {URL}}}]\n"
    [found] = mistakes_in(tmp_path, f"{text}\n{remote_write}")
    assert found.startswith(mistake)
