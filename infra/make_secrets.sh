#!/bin/sh
# Fresh secrets for compose.yaml, in infra/secrets, which git ignores. Does not replace any that are there.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
# The folder keeps other users out. The files must be readable to the user of the containers, who is none of the host's.
chmod 700 secrets
make() {
    [ -e "secrets/$1" ] || printf '%s' "$2" > "secrets/$1"
    chmod 644 "secrets/$1"
}
random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}
make postgres_password "$(random)"
make prefect_auth "admin:$(random)"
make s3_root_user "root$(random | cut -c1-12)"
make s3_root_password "$(random)"
make s3_user "latentpack$(random | cut -c1-10)"
make s3_password "$(random)"
