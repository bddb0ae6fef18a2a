"""The API's reference, made from the wire classes: JSON Schemas and the OpenAPI document."""
