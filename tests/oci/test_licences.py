import pytest
from license_expression import get_spdx_licensing

from oci.licences import spdx_expression


@pytest.mark.parametrize(("text", "expected"), [
    ("", "NOASSERTION"), ("  ", "NOASSERTION"), ("MIT", "MIT"), ("mit", "MIT"), ("MIT License", "MIT"),
    ("Apache 2.0", "Apache-2.0"), ("Apache-2.0 WITH LLVM-exception AND BSD-3-Clause",
                                   "Apache-2.0 WITH LLVM-exception AND BSD-3-Clause"),
    ("GPL-2+", "GPL-2.0-or-later"), ("GPL-3", "GPL-3.0-only"), ("LGPL-2.1+", "LGPL-2.1-or-later"),
    ("LGPL-2", "LGPL-2.0-only"), ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"), ("Expat and GPL-2+",
                                                                                       "MIT AND GPL-2.0-or-later"),
    ("(GPL-1+ or Artistic) and Expat", "(GPL-1.0-or-later OR Artistic-1.0) AND MIT"),
    ("GPL-1+ or Artistic, and Expat", "(GPL-1.0-or-later OR Artistic-1.0) AND MIT"),
    ("(GPL-1+ or Artistic, and Expat) and Zlib", "((GPL-1.0-or-later OR Artistic-1.0) AND MIT) AND Zlib"),
    ("CC0-1.0 OR Apache-2.0", "CC0-1.0 OR Apache-2.0"), ("LicenseRef-NVIDIA-Proprietary",
                                                         "LicenseRef-NVIDIA-Proprietary"),
])
def test_what_has_one_meaning_is_translated(text: str, expected: str) -> None:
    assert spdx_expression(text)[0] == expected


@pytest.mark.parametrize("text", [
    "BSD License", "Apache Software License", "BSD", "NVIDIA Proprietary Software", "MIT License; ISC License",
    "Copyright (c) 2005-2023, NumPy Developers.", "You may use this at home and share it with your neighbours freely",
    "(((", "and", "()", "A and and B", "(A or B", "A) and B",
    "GPL-3+ with GCC-Runtime exception", "日本語", "(A and " * 40 + "B" + ")" * 40, "x" * 9000,
])
def test_anything_else_keeps_its_words(text: str) -> None:
    expression, words = spdx_expression(text)
    assert expression.startswith("LicenseRef-")
    assert words == {expression: text}


def test_a_part_without_a_meaning_keeps_its_words() -> None:
    expression, words = spdx_expression("Expat and public-domain")
    (name,) = words
    assert expression == f"MIT AND {name}"
    assert words[name] == "public-domain"


def test_different_words_have_different_references() -> None:
    assert spdx_expression("BSD License")[0] != spdx_expression("BSD  license")[0]
    assert spdx_expression("BSD License") == spdx_expression(" BSD   License ")


@pytest.mark.parametrize("text", ["GPL-2+ or Artistic, and BSD-4-clause-X", "LGPL-2.1+ and (MPL-1.1 or GPL-2)", "BSD",
                                  "PSF-2.0 and Expat, or ISC", "GFDL-1.2", "Artistic-2", "AGPL-3+"])
def test_the_result_is_an_expression_for_an_independent_parser(text: str) -> None:
    expression, words = spdx_expression(text)
    parsed = get_spdx_licensing().parse(expression)
    unknown = {str(key) for key in get_spdx_licensing().unknown_license_keys(parsed)}
    assert {name.lower() for name in unknown} == {name.lower() for name in words}
