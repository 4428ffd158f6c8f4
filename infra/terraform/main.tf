# A bucket for archives, and who may do what with it. The policies are files, in policies/: a test holds them against
# real runs.

data "aws_partition" "current" {}

locals {
  archive     = aws_s3_bucket.archive.arn
  source      = "arn:${data.aws_partition.current.partition}:s3:::${var.source_bucket}"
  destination = "arn:${data.aws_partition.current.partition}:s3:::${var.destination_bucket}"

  # By role: the policies it has, and the service account that takes it.
  roles = {
    reader     = { account = "latentpack-reader", policies = ["archive_reader", "key_reader"] }
    writer     = { account = "latentpack-runs", policies = ["archive_writer", "source_reader", "destination_writer", "key_user"] }
    maintainer = { account = "latentpack-maintenance", policies = ["archive_maintainer", "key_user"] }
  }
  left_out = concat(
    var.destination_bucket == "" ? ["destination_writer"] : [],
    var.kms_key_arn == "" ? ["key_reader", "key_user"] : [],
  )
  grants = { for pair in flatten([
    for role, one in local.roles : [for policy in setsubtract(one.policies, local.left_out) : { role = role, policy = policy }]
  ]) : "${pair.role}-${pair.policy}" => pair }

  # arn:aws:iam::ACCOUNT:oidc-provider/HOST/PATH -> HOST/PATH
  provider = join("/", slice(split("/", var.oidc_provider_arn), 1, length(split("/", var.oidc_provider_arn))))
  bound    = var.oidc_provider_arn == "" ? {} : local.roles
}

resource "aws_s3_bucket" "archive" {
  bucket = var.archive_bucket
  tags   = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "archive" {
  bucket                  = aws_s3_bucket.archive.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

# With a bucket key, KMS is asked once for many objects.
resource "aws_s3_bucket_server_side_encryption_configuration" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == "" ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn == "" ? null : var.kms_key_arn
    }
    bucket_key_enabled = var.kms_key_arn != ""
  }
}

resource "aws_s3_bucket_versioning" "archive" {
  bucket = aws_s3_bucket.archive.id

  versioning_configuration {
    status = "Enabled"
  }
}

# Versioning keeps what was deleted, so that an erasure is complete only when these days are over.
resource "aws_s3_bucket_lifecycle_configuration" "archive" {
  bucket     = aws_s3_bucket.archive.id
  depends_on = [aws_s3_bucket_versioning.archive]

  rule {
    id     = "forget-what-was-deleted"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.erasure_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "abort-unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

resource "aws_s3_bucket_policy" "archive" {
  bucket     = aws_s3_bucket.archive.id
  policy     = templatefile("${path.module}/policies/bucket.json", { archive = local.archive })
  depends_on = [aws_s3_bucket_public_access_block.archive]
}

resource "aws_iam_policy" "grant" {
  for_each = toset([for grant in local.grants : grant.policy])

  name        = "${var.archive_bucket}-${replace(each.key, "_", "-")}"
  description = "latentpack: ${replace(each.key, "_", " ")}"
  policy = templatefile("${path.module}/policies/${each.key}.json", {
    archive     = local.archive
    source      = local.source
    destination = local.destination
    key         = var.kms_key_arn
  })
  tags = var.tags
}

# A role's name has 64 characters at most, a bucket's 63.
resource "aws_iam_role" "role" {
  for_each = local.bound

  name = "${substr(var.archive_bucket, 0, 53)}-${each.key}"
  tags = var.tags
  assume_role_policy = templatefile("${path.module}/policies/trust.json", {
    provider_arn = var.oidc_provider_arn
    provider     = local.provider
    namespace    = var.namespace
    account      = each.value.account
  })
}

resource "aws_iam_role_policy_attachment" "grant" {
  for_each = { for name, pair in local.grants : name => pair if contains(keys(local.bound), pair.role) }

  role       = aws_iam_role.role[each.value.role].name
  policy_arn = aws_iam_policy.grant[each.value.policy].arn
}
