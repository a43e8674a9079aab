# The worker as a container: any user but root, a read-only root file system, /data the only path it writes to.
#
#   docker build --tag cloudflare-remote-write:0.1.0 .
#   docker run --read-only --cap-drop ALL --volume cfrw:/data --env-file cfrw.env cloudflare-remote-write:0.1.0
#
# A destination that is Amazon's or Azure's managed Prometheus needs one package more: --build-arg EXTRAS=aws, or azure,
# or "aws azure" (the extras of pyproject.toml).
#
# The base is a moving tag, so that a rebuild picks up its security fixes. For builds that repeat to the byte, hand in the
# same tag with a digest: --build-arg BASE=python:3.13-slim-trixie@sha256:...
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
# First what rarely changes: the packages, each checked against its hash. What builds the wheel goes into this stage's own
# Python and stays behind; /opt/cfrw holds what runs, without pip.
COPY requirements/aws.txt requirements/azure.txt requirements/build.txt requirements/run.txt requirements/
ARG EXTRAS=""
RUN python -m pip install --require-hashes --only-binary :all: --requirement requirements/build.txt \
 && python -m venv --without-pip /opt/cfrw \
 && set -- requirements/run.txt \
 && for extra in ${EXTRAS}; do set -- "$@" --requirement "requirements/${extra}.txt"; done \
 && python -m pip --python /opt/cfrw/bin/python install --require-hashes --only-binary :all: --requirement "$@"
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
RUN python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheel . \
 && python -m pip --python /opt/cfrw/bin/python install --no-index --no-deps /wheel/*.whl \
 && /opt/cfrw/bin/cfrw --help

FROM ${BASE}
LABEL org.opencontainers.image.title="cloudflare-remote-write" \
      org.opencontainers.image.description="Finalized Cloudflare analytics, pushed over Prometheus remote write" \
      org.opencontainers.image.licenses="Apache-2.0"
# A new named volume takes its owner and mode from here.
RUN install --directory --owner=65532 --group=65532 --mode=0700 /data
COPY --from=build /opt/cfrw /opt/cfrw
# TMPDIR: SQLite's temporary files, too, go where writing is allowed. USER: the number 65532 has no name, and the journal
# of repairs asks for one.
ENV PATH=/opt/cfrw/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/data \
    USER=cfrw \
    LEDGER_PATH=/data/ledger.db \
    LISTEN_ADDRESS=0.0.0.0:9845
# By number: Kubernetes can only then tell that it is not root.
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 9845
# A start takes about a second; the start period leaves room for a migration of a large ledger.
HEALTHCHECK --interval=30s --timeout=5s --start-period=240s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; server = http.client.HTTPConnection('127.0.0.1', os.environ['LISTEN_ADDRESS'].rpartition(':')[2], timeout=4); server.request('GET', '/-/healthy'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["cfrw"]
CMD ["run"]
