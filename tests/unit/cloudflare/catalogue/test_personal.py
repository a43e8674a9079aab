import pytest

from worker.cloudflare.catalogue.personal import is_personal

PERSONAL = """
    clientIP sourceIP destinationIp ipAddress ipSourceAddress ipDestinationSubnet ipv4 ipv6 resolvedIps sourceInternalIp
    email userId userUuid username creator envelopeFrom headerFrom deviceId deviceID deviceName sourceDeviceTag
    userAgent ja3Hash ja4 sessionId sessionIdHash requestId rayName originatorRayName cfRayId mtlsCommonName
    clientRequestPath clientRequestQuery clientRequestReferer clientRefererPath requestPath urlPath url pageURL query
    redirectTargetURI prompts promptsIds metadataValues sourceGeohash CLIENTIP
"""
HARMLESS = """
    cacheStatus clientCountryName clientAsn coloCode clientRequestHTTPMethodName clientRequestHTTPHost queryName
    queryType hostname originIP upstreamIP ipVersion ipProtocolName ipType clientIPClass userAgentBrowser deviceType
"""


@pytest.mark.parametrize("dimension", PERSONAL.split())
def test_what_points_at_a_person_is_personal(dimension: str) -> None:
    assert is_personal(dimension)


@pytest.mark.parametrize("dimension", HARMLESS.split())
def test_what_does_not_is_not(dimension: str) -> None:
    assert not is_personal(dimension)
