"""The columns of FOCUS (FinOps Open Cost and Usage Specification) 1.2 and 1.3, as the writer and the checker know them.

`columns_of` gives a version's columns in the specification's order, `CUSTOM_COLUMNS` those of ours that follow them.
Kinds and allowed values are those of the specification's column definitions; what rows must say together is in
`metering.focus_rules`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a cell of a column holds."""

    TEXT = "text"
    DECIMAL = "decimal"
    DATETIME = "datetime"
    JSON = "json"
    CURRENCY = "currency"
    UNIT = "unit"


@dataclass(frozen=True, slots=True)
class FocusColumn:
    """A column. `allowed` is empty where any value of the kind will do."""

    name: str
    kind: Kind = Kind.TEXT
    is_nullable: bool = True
    allowed: frozenset[str] = frozenset()


def _text(name: str, *allowed: str) -> FocusColumn:
    return FocusColumn(name, allowed=frozenset(allowed))


def _needed(name: str, kind: Kind = Kind.TEXT, *allowed: str) -> FocusColumn:
    return FocusColumn(name, kind, is_nullable=False, allowed=frozenset(allowed))


def _some(kind: Kind, name: str) -> FocusColumn:
    return FocusColumn(name, kind)


SUBCATEGORIES = {
    "AI and Machine Learning": (
        *("AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing"),
        "Other (AI and Machine Learning)",
    ),
    "Analytics": (
        *("Analytics Platforms", "Business Intelligence", "Data Processing", "Search", "Streaming Analytics"),
        "Other (Analytics)",
    ),
    "Business Applications": ("Productivity and Collaboration", "Other (Business Applications)"),
    "Compute": (
        *("Containers", "End User Computing", "Quantum Compute", "Serverless Compute", "Virtual Machines"),
        "Other (Compute)",
    ),
    "Databases": (
        *("Caching", "Data Warehouses", "Ledger Databases", "NoSQL Databases", "Relational Databases"),
        *("Time Series Databases", "Other (Databases)"),
    ),
    "Developer Tools": (
        *("Developer Platforms", "Continuous Integration and Deployment", "Development Environments"),
        *("Source Code Management", "Quality Assurance", "Other (Developer Tools)"),
    ),
    "Multicloud": ("Multicloud Integration", "Other (Multicloud)"),
    "Identity": ("Identity and Access Management", "Other (Identity)"),
    "Integration": ("API Management", "Messaging", "Workflow Orchestration", "Other (Integration)"),
    "Internet of Things": ("IoT Analytics", "IoT Platforms", "Other (Internet of Things)"),
    "Management and Governance": (
        *("Architecture", "Compliance", "Cost Management", "Data Governance", "Disaster Recovery"),
        *("Endpoint Management", "Observability", "Support", "Other (Management and Governance)"),
    ),
    "Media": ("Content Creation", "Gaming", "Media Streaming", "Mixed Reality", "Other (Media)"),
    "Migration": ("Data Migration", "Resource Migration", "Other (Migration)"),
    "Mobile": ("Other (Mobile)",),
    "Networking": (
        *("Application Networking", "Content Delivery", "Network Connectivity", "Network Infrastructure"),
        *("Network Routing", "Network Security", "Other (Networking)"),
    ),
    "Security": (
        *("Secret Management", "Security Posture Management", "Threat Detection and Response", "Other (Security)"),
    ),
    "Storage": (
        *("Backup Storage", "Block Storage", "File Storage", "Object Storage", "Storage Platforms"),
        "Other (Storage)",
    ),
    "Web": ("Application Platforms", "Other (Web)"),
    "Other": ("Other (Other)",),
}
"""Service subcategories by their one parent category (FOCUS 1.2, ServiceSubcategory)."""

FOCUS_1_2 = (
    _text("AvailabilityZone"),
    _needed("BilledCost", Kind.DECIMAL),
    _needed("BillingAccountId"),
    _text("BillingAccountName"),
    _text("BillingAccountType"),
    _needed("BillingCurrency", Kind.CURRENCY),
    _needed("BillingPeriodEnd", Kind.DATETIME),
    _needed("BillingPeriodStart", Kind.DATETIME),
    _text("CapacityReservationId"),
    _text("CapacityReservationStatus", "Used", "Unused"),
    _needed("ChargeCategory", Kind.TEXT, "Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    _text("ChargeClass", "Correction"),
    _text("ChargeDescription"),
    _needed("ChargeFrequency", Kind.TEXT, "One-Time", "Recurring", "Usage-Based"),
    _needed("ChargePeriodEnd", Kind.DATETIME),
    _needed("ChargePeriodStart", Kind.DATETIME),
    _text("CommitmentDiscountCategory", "Spend", "Usage"),
    _text("CommitmentDiscountId"),
    _text("CommitmentDiscountName"),
    _some(Kind.DECIMAL, "CommitmentDiscountQuantity"),
    _text("CommitmentDiscountStatus", "Used", "Unused"),
    _text("CommitmentDiscountType"),
    _some(Kind.UNIT, "CommitmentDiscountUnit"),
    _some(Kind.DECIMAL, "ConsumedQuantity"),
    _some(Kind.UNIT, "ConsumedUnit"),
    _needed("ContractedCost", Kind.DECIMAL),
    _some(Kind.DECIMAL, "ContractedUnitPrice"),
    _needed("EffectiveCost", Kind.DECIMAL),
    _text("InvoiceId"),
    _needed("InvoiceIssuerName"),
    _needed("ListCost", Kind.DECIMAL),
    _some(Kind.DECIMAL, "ListUnitPrice"),
    _text("PricingCategory", "Standard", "Dynamic", "Committed", "Other"),
    _some(Kind.CURRENCY, "PricingCurrency"),
    _some(Kind.DECIMAL, "PricingCurrencyContractedUnitPrice"),
    _some(Kind.DECIMAL, "PricingCurrencyEffectiveCost"),
    _some(Kind.DECIMAL, "PricingCurrencyListUnitPrice"),
    _some(Kind.DECIMAL, "PricingQuantity"),
    _some(Kind.UNIT, "PricingUnit"),
    _needed("ProviderName"),
    _needed("PublisherName"),
    _text("RegionId"),
    _text("RegionName"),
    _text("ResourceId"),
    _text("ResourceName"),
    _text("ResourceType"),
    _needed("ServiceCategory", Kind.TEXT, *SUBCATEGORIES),
    _needed("ServiceName"),
    _text("ServiceSubcategory", *(word for words in SUBCATEGORIES.values() for word in words)),
    _text("SkuId"),
    _text("SkuMeter"),
    _some(Kind.JSON, "SkuPriceDetails"),
    _text("SkuPriceId"),
    _text("SubAccountId"),
    _text("SubAccountName"),
    _text("SubAccountType"),
    _some(Kind.JSON, "Tags"),
)
_ADDED_1_3 = (
    _some(Kind.JSON, "AllocatedMethodDetails"),
    _text("AllocatedMethodId"),
    _text("AllocatedResourceId"),
    _text("AllocatedResourceName"),
    _some(Kind.JSON, "AllocatedTags"),
    _some(Kind.JSON, "ContractApplied"),
    _needed("HostProviderName"),
    _needed("ServiceProviderName"),
)
FOCUS_1_3 = tuple(sorted((*FOCUS_1_2, *_ADDED_1_3), key=lambda column: column.name))
"""Version 1.3 orders its columns by name too; it deprecates ProviderName and PublisherName but has them still."""
VERSIONS = {"1.2": FOCUS_1_2, "1.3": FOCUS_1_3}

CUSTOM_COLUMNS = (
    *("x_JobId", "x_SegmentNo", "x_SegmentStart", "x_SegmentEnd", "x_EndReason", "x_UserId", "x_GpuModel"),
    *("x_GpuCount", "x_NodeCount", "x_GpuUuids", "x_PriceBookVersion", "x_LedgerEntryId", "x_CorrectsEntryId"),
    *("x_GpuUtilAvg", "x_EnergyKwh", "x_EvidenceClass", "x_IncidentId"),
)


def columns_of(version: str) -> tuple[str, ...]:
    """Returns the names of a version's columns in the specification's order, then ours. Raises KeyError for others."""
    return (*(column.name for column in VERSIONS[version]), *CUSTOM_COLUMNS)
