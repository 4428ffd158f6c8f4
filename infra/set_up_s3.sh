#!/bin/sh
# What compose.yaml's S3 server needs, made as its root: two buckets, and the user that all jobs are. It may read pictures,
# and read, write and delete what is in the bucket of archives. Run at each start: a new password is taken over.
set -eu
cd "$(dirname "$0")"
user=$(cat "$AWS_ACCESS_KEY_ID_FILE")
made=$(mktemp -d)
export MC_CONFIG_DIR="$made"
MC_HOST_store="http://$(cat "$MINIO_ROOT_USER_FILE"):$(cat "$MINIO_ROOT_PASSWORD_FILE")@s3:9000"
export MC_HOST_store
mc mb --ignore-existing store/pictures store/latentpack
printf '%s\n%s\n' "$user" "$(cat "$AWS_SECRET_ACCESS_KEY_FILE")" | mc admin user add store
has=$(mc admin user info store "$user")
# The policies are Terraform's, whose variables these are.
# shellcheck disable=SC2034
source=arn:aws:s3:::pictures archive=arn:aws:s3:::latentpack
for policy in source_reader archive_maintainer; do
    eval "cat <<END
$(cat "terraform/policies/$policy.json")
END" > "$made/$policy.json"
    mc admin policy create store "$policy" "$made/$policy.json"
    case $has in
        *"$policy"*) ;;  # attaching it again would be an error
        *) mc admin policy attach store "$policy" --user "$user" ;;
    esac
done
rm -rf "$made"
