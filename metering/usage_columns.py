"""The columns of the native usage lines: a contract with billing departments. docs/ledger.md says what each one means.

By themselves, so that who reads files only need not load what reads the ledger.
"""

USAGE_COLUMNS = (
    *("line_id", "period", "period_status", "tenant_id", "tenant_name", "project_id", "project_name", "user_id"),
    *("job_id", "job_name", "segment_no", "end_reason", "gpu_model", "gpu_share", "gpu_count", "priority_class"),
    *("start_local", "end_local", "start_utc", "duration_ms", "gpu_ms", "gpu_hours", "sku", "price_book"),
    *("unit_price", "list_amount", "discount_amount", "amount", "currency", "tax_rate", "line_type"),
    *("corrects_line_id", "package_id", "gpu_util_avg_pct", "energy_kwh", "evidence"),
    *("list_price", "price_band", "effective_amount", "incident_id"),
)
