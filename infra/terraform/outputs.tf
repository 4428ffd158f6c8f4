output "archive" {
  description = "URL of the bucket; an archive is a prefix below it."
  value       = "s3://${aws_s3_bucket.archive.id}"
}

output "policy_arns" {
  description = "Policies to attach to users or roles of your own."
  value       = { for name, policy in aws_iam_policy.grant : name => policy.arn }
}

output "role_arns" {
  description = "Roles that service accounts of the cluster take; for kubernetes/overlays/aws-role."
  value       = { for name, role in aws_iam_role.role : name => role.arn }
}
