"""Colours of the report: ramps of even lightness that colour-blind eyes read as well.

Hides the colour space (OKLab): a step of a ramp is the same step of lightness everywhere, and
no meaning hangs on the hue. Text on a step is black or white, whichever stands out more.
"""

from __future__ import annotations

LEVELS = 16
"""Steps of the map ramp, indigo to yellow."""
SURPRISES = 9
"""Steps of the ramp behind tokens."""

# Lightness, green to red, blue to yellow (OKLab): both ends of a ramp, and what it bends towards.
_MAP = ((0.26, 0.02, -0.1), (0.595, -0.14, -0.075), (0.93, -0.03, 0.15))
_TINT_LIGHT = ((0.985, 0.0, 0.004), (0.8725, 0.02, 0.07), (0.76, 0.045, 0.125))
_TINT_DARK = ((0.235, 0.0, 0.004), (0.3525, 0.03, 0.045), (0.47, 0.055, 0.085))

Colour = tuple[float, float, float]
Ramp = tuple[Colour, Colour, Colour]


def map_ramp() -> list[str]:
    """Gives LEVELS colours as #rrggbb, from indigo by teal to yellow."""
    return _ramp(_MAP, LEVELS)


def tints(*, dark: bool) -> list[str]:
    """Gives SURPRISES backgrounds of tokens as #rrggbb, from the page's own colour to amber."""
    return _ramp(_TINT_DARK if dark else _TINT_LIGHT, SURPRISES)


def text_on(colour: str) -> str:
    """Gives black or white, whichever has more contrast: always at least 4.58 to 1."""
    return max("#000000", "#ffffff", key=lambda text: contrast(text, colour))


def contrast(a: str, b: str) -> float:
    """Gives the contrast of two #rrggbb colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def rgb(colour: str) -> tuple[int, int, int]:
    """Gives red, green and blue, 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (part / 255 for part in rgb(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _ramp(ends: Ramp, count: int) -> list[str]:
    return [_hex(_bezier(ends, i / (count - 1))) for i in range(count)]


def _bezier(ends: Ramp, t: float) -> Colour:
    a, b, c = (
        (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t * t * last
        for first, middle, last in zip(*ends, strict=True)
    )
    return a, b, c


def _hex(colour: Colour) -> str:
    # Ottosson, "A perceptual color space for image processing", 2020
    lightness, a, b = colour
    cone = (
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    )
    long, middle, short = (c**3 for c in cone)
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{_byte(value):02x}" for value in linear)


def _byte(linear: float) -> int:
    value = min(1.0, max(0.0, linear))
    value = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    return round(255 * value)
