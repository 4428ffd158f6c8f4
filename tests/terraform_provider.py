"""A Terraform provider that has the schemas of another and no cloud: python -m tests.terraform_provider SCHEMAS.json.

SCHEMAS.json is what ``terraform providers schema -json`` prints, cut down to one provider and the types in use. With it
Terraform itself validates and plans, offline, what is written for that provider. Of values that the cloud would
make up, a plan knows those in KNOWN, and no other.
"""

# ruff: noqa: N802 (methods of a gRPC service are named as its calls are)

import json
import sys
from pathlib import Path
from typing import Any

import msgpack
import tf.provider
from tf.gen import tfplugin_pb2 as wire
from tf.runner import run_provider

UNKNOWN = msgpack.ExtType(0, b"\0")  # as Terraform writes "known after apply"
KNOWN: dict[str, dict[str, str]] = {
    "aws_partition": {"partition": "aws"},
    "aws_s3_bucket": {"id": "{bucket}", "arn": "arn:aws:s3:::{bucket}"},
}


def _block(block: dict[str, Any]) -> Any:
    flags = ("required", "optional", "computed")
    return wire.Schema.Block(
        attributes=[
            wire.Schema.Attribute(name=name, type=json.dumps(one["type"]).encode(), **{f: one.get(f) for f in flags})
            for name, one in block["attributes"].items()
        ],
        block_types=[
            wire.Schema.NestedBlock(
                type_name=name,
                nesting=one["nesting_mode"].upper(),
                min_items=one.get("min_items"),
                max_items=one.get("max_items"),
                block=_block(one["block"]),
            )
            for name, one in block.get("block_types", {}).items()
        ],
    )


def _schemas(schemas: dict[str, Any]) -> dict[str, Any]:
    return {name: wire.Schema(block=_block(one["block"])) for name, one in schemas.items()}


class SchemaServicer(tf.provider.ProviderServicer):
    """Answers Terraform's questions; of the base's methods those alone that validating and planning ask."""

    schemas: dict[str, Any]

    def GetMetadata(self, request: Any, context: Any) -> Any:
        return wire.GetMetadata.Response()

    def GetProviderSchema(self, request: Any, context: Any) -> Any:
        return wire.GetProviderSchema.Response(
            provider=wire.Schema(block=wire.Schema.Block()),
            resource_schemas=_schemas(self.schemas["resource_schemas"]),
            data_source_schemas=_schemas(self.schemas["data_source_schemas"]),
        )

    def ValidateProviderConfig(self, request: Any, context: Any) -> Any:
        return wire.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request: Any, context: Any) -> Any:
        return wire.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request: Any, context: Any) -> Any:
        return wire.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request: Any, context: Any) -> Any:
        return wire.ConfigureProvider.Response()

    def ReadDataSource(self, request: Any, context: Any) -> Any:
        return wire.ReadDataSource.Response(
            state=self._filled(request.type_name, "data_source_schemas", request.config, None)
        )

    def PlanResourceChange(self, request: Any, context: Any) -> Any:
        state = self._filled(request.type_name, "resource_schemas", request.proposed_new_state, UNKNOWN)
        return wire.PlanResourceChange.Response(planned_state=state)

    def _filled(self, name: str, kind: str, value: Any, otherwise: Any) -> Any:
        state = msgpack.unpackb(value.msgpack)
        for attribute, one in self.schemas[kind][name]["block"]["attributes"].items():
            if one.get("computed") and state[attribute] is None:
                known = KNOWN.get(name, {}).get(attribute)
                state[attribute] = known.format(**state) if known else otherwise
        return wire.DynamicValue(msgpack=msgpack.packb(state))


if __name__ == "__main__":
    [SchemaServicer.schemas] = json.loads(Path(sys.argv[1]).read_text())["provider_schemas"].values()
    tf.provider.ProviderServicer = SchemaServicer  # run_provider makes one of these
    run_provider(None, sys.argv[:1])
