"""Prompts on which ranges are measured unless the user names others: short and long ones, of many subjects."""

from __future__ import annotations

#: For models that draw what people ask for.
GENERAL = (
    "a portrait of an old fisherman in a yellow raincoat, rain, shallow depth of field",
    "three red apples on a wooden table beside a window, morning light",
    "a crowded street market in Marrakesh at night, lanterns, smoke rising from food stalls",
    "a shop sign that reads OPEN LATE, neon, wet asphalt",
    "watercolour of a heron standing in reeds, mist over the lake",
    "a small blue cube on top of a large green sphere, studio render, plain white background",
    "aerial photograph of terraced rice fields after rain",
    "an astronaut planting a flag in a garden of giant mushrooms, comic book style, bold outlines, halftone",
)
#: For the embedded model, whose vocabulary is that of plain shapes.
SHAPES = (
    "a red circle",
    "two green squares",
    "a blue star on a yellow background",
    "a purple ring to the left of an orange triangle",
    "three yellow circles",
    "a yellow square and a red ring",
    "a green ring above a blue star",
    "an orange triangle below a purple circle on a white background",
)
