variable "archive_bucket" {
  description = "Name of the bucket to make for archives."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.archive_bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits, dots and dashes."
  }
}

variable "source_bucket" {
  description = "Name of the bucket that pictures are read from. It exists already and is not changed."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{3,255}$", var.source_bucket))
    error_message = "A bucket's name, without s3:// and prefix."
  }
}

variable "destination_bucket" {
  description = "Name of the bucket that restored pictures, reports and trained codecs go to, where that is not the archive's. It exists already and is not changed. Empty: none."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([A-Za-z0-9._-]{3,255})?$", var.destination_bucket))
    error_message = "A bucket's name, without s3:// and prefix."
  }
}

variable "erasure_days" {
  description = "Days until S3 forgets what was deleted or overwritten: time to undo what the weekly verification finds, and what an erasure takes."
  type        = number
  default     = 14

  validation {
    condition     = var.erasure_days >= 1 && var.erasure_days <= 30
    error_message = "Between 1 and 30: the right to erasure allows about a month in all."
  }
}

variable "kms_key_arn" {
  description = "ARN of a KMS key of yours that encrypts the archive's bucket; its policy must let this account's IAM grant its use. Empty: S3's own keys."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.kms_key_arn))
    error_message = "A key's ARN, which holds :key/; no policy takes an alias."
  }
}

variable "oidc_provider_arn" {
  description = "ARN of the cluster's OIDC provider, whose service accounts take the roles. Empty: no roles, only policies."
  type        = string
  default     = ""
}

variable "namespace" {
  description = "Kubernetes namespace of the service accounts."
  type        = string
  default     = "latentpack"
}

variable "tags" {
  description = "Tags of all that is made."
  type        = map(string)
  default     = {}
}
