"""Bodies that routes read by themselves, and their place in the OpenAPI document.

FastAPI would decode a body to Python values before its model sees them; a submission is decoded once, by the model.
"""

from typing import Any

from pydantic import BaseModel


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the part of an operation that says what its body is."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema)}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema whose references into its own `$defs` are replaced by what they name."""
    definitions = schema.pop("$defs", {})

    def inline(part: Any) -> Any:  # Any: a JSON document
        if isinstance(part, dict):
            name = str(part.get("$ref", "")).removeprefix("#/$defs/")
            if name in definitions:
                return inline(definitions[name])
            return {key: inline(value) for key, value in part.items()}
        return [inline(each) for each in part] if isinstance(part, list) else part

    inlined: dict[str, Any] = inline(schema)
    return inlined
