"""Block reports: what is written is read again, also what an earlier version wrote."""

import json
from pathlib import Path

import pytest

from mbs_ray.compression.block_report import BlockReport, LinearReport, read_block_reports, write_block_report
from mbs_ray.compression.layer_error import LayerError

LINEAR = LinearReport("dense", 4, 8, 96, 0.5, 0.25, 0.5, 0.01, 0, 1.5)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    errors = [LayerError("en", "dense", 1.0, 4.0), LayerError("zh-Hans", "dense", 0.1, 0.3)]
    report = BlockReport(3, [LINEAR], {"read": 0.25}, errors)
    write_block_report(tmp_path, report)
    assert read_block_reports(tmp_path) == [report]


def test_a_report_without_languages_is_read_too(tmp_path: Path) -> None:
    content = BlockReport(0, [LINEAR], {"read": 0.25}).to_json()
    del content["layer_error"]
    (tmp_path / "block-00000.json").write_text(json.dumps(content))
    (report,) = read_block_reports(tmp_path)
    assert report == BlockReport(0, [LINEAR], {"read": 0.25}) and report.language_errors() == {}


def test_the_error_of_a_language_is_that_of_all_linears_together() -> None:
    errors = [
        LayerError("sw", "small", 1.0, 2.0),
        LayerError("sw", "large", 1.0, 98.0),
        LayerError("yo", "small", 0.0, 0.0),
    ]
    assert BlockReport(0, layer_error=errors).language_errors() == {"sw": pytest.approx(2.0 / 100.0)}
