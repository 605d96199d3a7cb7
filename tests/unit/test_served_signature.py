"""What may be asked of a served model."""

from dataclasses import fields

from gptmodel.config import DecodingConfig


def test_every_setting_of_decoding_is_a_parameter_with_its_default() -> None:
    from tasks.tracking.serving import signature

    params = {spec.name: spec.default for spec in signature().params.params}
    assert set(params) == {field.name for field in fields(DecodingConfig)}
    assert params["precision"] == "float32"
    assert params["temperature"] == DecodingConfig().temperature
