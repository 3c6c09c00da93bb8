# One image for the operator and the workers; docs/reference/image.md tells of its arguments. No stage but the last ends up in it, and
# the last one runs nothing: it only puts files on the base, so a base without a shell will do as well.
ARG BASE_IMAGE=python:3.13-slim-bookworm

FROM ${BASE_IMAGE} AS packages
WORKDIR /build
# A folder `wheels` beside this file is installed from where there is one, and then nothing is asked of the network.
COPY requirements.txt requirements-build.txt scripts/image_files.py wheel[s]/* ./
RUN ["python3", "image_files.py", "packages"]

FROM packages AS project
RUN ["python3", "image_files.py", "tools"]
COPY pyproject.toml README.md LICENSE project/
COPY proto project/proto
COPY model project/model
COPY worker project/worker
COPY operator project/operator
COPY cli project/cli
RUN ["python3", "image_files.py", "project"]

FROM ${BASE_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Fleet Twin" \
      org.opencontainers.image.description="A digital twin for every device of a fleet: operator and worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages /image/ /
COPY --from=project /image/ /
# The root may be read-only: all bytecode is there, and what wants a home folder finds the one place that is always writable. The user
# has a name whatever number a pod gives it: no /etc/passwd knows that number.
ENV PATH=/opt/fleet-twin/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=fleet-twin \
    LOGNAME=fleet-twin
USER 65532:65532
WORKDIR /
EXPOSE 8080 8081
ENTRYPOINT ["fleet-twin"]
CMD ["--help"]
