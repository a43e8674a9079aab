"""The messages of remote write 1.0 and 2.0, generated from proto/*.proto; delivery itself does without them.

To make them anew, with the `grpcio-tools` package installed:

    python -m grpc_tools.protoc -I proto --python_out=worker/remote_write/proto --pyi_out=worker/remote_write/proto \
        proto/remote_write_v1.proto proto/remote_write_v2.proto
"""
