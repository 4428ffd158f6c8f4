#!/bin/sh
# Make what a new server needs: bucket (where LATENTPACK_BUCKET names one), work pool, queue of writers, deployments,
# automations.
# Run again after each upgrade: what is there already is kept or replaced.
set -eu
POOL_TYPE=${LATENTPACK_POOL_TYPE:-process}
if [ -n "${LATENTPACK_BUCKET:-}" ]; then
    python -c "
import os, s3fs
store, bucket = s3fs.S3FileSystem(), os.environ['LATENTPACK_BUCKET']
store.exists(bucket) or store.mkdir(bucket)"
fi
if [ -n "${LATENTPACK_JOB_TEMPLATE:-}" ]; then
    prefect --no-prompt work-pool create latentpack --type "$POOL_TYPE" --overwrite \
        --base-job-template "$LATENTPACK_JOB_TEMPLATE"
else
    prefect --no-prompt work-pool create latentpack --type "$POOL_TYPE" --overwrite
fi
prefect --no-prompt work-queue create writers --pool latentpack --limit 1 ||
    prefect --no-prompt work-queue set-concurrency-limit writers 1 --pool latentpack
prefect --no-prompt deploy --all
# Each by its name first, for a second import would make a second one of the same name.
automations="$(dirname "$0")/automations.yaml"
sed -n 's/^  - name: "\(.*\)"$/\1/p' "$automations" | while read -r name; do
    prefect --no-prompt automation delete "$name" > /dev/null 2>&1 || true
done
prefect --no-prompt automation create --from-file "$automations"
