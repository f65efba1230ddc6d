"""The four first hospitals of each family as tables of settings; ``style.SiteStyle`` says what each means."""

from __future__ import annotations

from typing import Any

CINE: tuple[dict[str, Any], ...] = (
    {
        "size": (80, 80, 8),
        "spacing": (1.8, 1.8, 8.0),
        "oblique": (20.0, -15.0, 5.0),
        "tissue": {
            "air": 0.02, "lung": 0.07, "muscle": 0.30, "fat": 0.78, "liver": 0.40, "spleen": 0.46,
            "stomach": 0.80, "blood": 0.82, "myocardium": 0.34, "bone": 0.45,
        },
        "gain": 900.0, "gamma": 1.0, "bias": 0.15, "noise": 0.035, "blur": 1.0, "turn": 0.0,
        "anatomy": {"normal": 0.7, "dilated": 0.1, "hypertrophic": 0.1, "right_load": 0.1},
    },
    {
        "size": (84, 80, 9),
        "spacing": (1.7, 1.7, 8.0),
        "oblique": (-10.0, 25.0, -8.0),
        "tissue": {
            "air": 0.03, "lung": 0.12, "muscle": 0.44, "fat": 0.92, "liver": 0.62, "spleen": 0.56,
            "stomach": 0.45, "blood": 0.76, "myocardium": 0.42, "bone": 0.75,
        },
        "gain": 210.0, "gamma": 1.1, "bias": 0.22, "noise": 0.05, "blur": 1.4, "turn": 14.0,
        "anatomy": {"normal": 0.2, "dilated": 0.7, "hypertrophic": 0.0, "right_load": 0.1},
    },
    {
        "size": (80, 88, 8),
        "spacing": (1.9, 1.9, 8.0),
        "oblique": (12.0, 18.0, 12.0),
        "tissue": {
            "air": 0.02, "lung": 0.05, "muscle": 0.50, "fat": 0.16, "liver": 0.56, "spleen": 0.76,
            "stomach": 0.25, "blood": 0.86, "myocardium": 0.48, "bone": 0.15,
        },
        "gain": 2600.0, "gamma": 0.9, "bias": 0.25, "noise": 0.045, "blur": 0.6, "turn": -12.0,
        "anatomy": {"normal": 0.2, "dilated": 0.0, "hypertrophic": 0.7, "right_load": 0.1},
    },
    {
        "size": (80, 80, 10),
        "spacing": (2.0, 2.0, 8.0),
        "oblique": (-22.0, -8.0, 0.0),
        "tissue": {
            "air": 0.02, "lung": 0.14, "muscle": 0.22, "fat": 0.92, "liver": 0.28, "spleen": 0.38,
            "stomach": 0.55, "blood": 0.58, "myocardium": 0.22, "bone": 0.70,
        },
        "gain": 450.0, "gamma": 1.0, "bias": 0.25, "noise": 0.04, "blur": 1.7, "turn": 20.0,
        "anatomy": {"normal": 0.2, "dilated": 0.1, "hypertrophic": 0.1, "right_load": 0.6},
    },
)  # fmt: skip

LATE_ENHANCEMENT: tuple[dict[str, Any], ...] = (
    {  # bright blood, well nulled muscle
        "size": (88, 88, 8),
        "spacing": (1.6, 1.6, 8.0),
        "oblique": (18.0, -20.0, 4.0),
        "tissue": {
            "air": 0.02, "lung": 0.06, "muscle": 0.18, "fat": 0.62, "liver": 0.36, "spleen": 0.42,
            "stomach": 0.50, "blood": 0.56, "myocardium": 0.20, "bone": 0.35, "infarct": 0.95, "no_reflow": 0.05,
        },
        "gain": 700.0, "gamma": 1.0, "bias": 0.15, "noise": 0.03, "blur": 1.0, "turn": 0.0,
        "anatomy": {"normal": 0.7, "dilated": 0.2, "hypertrophic": 0.05, "right_load": 0.05},
    },
    {  # late inversion time: muscle grey, blood as bright as the scar
        "size": (92, 88, 9),
        "spacing": (1.5, 1.5, 8.0),
        "oblique": (-12.0, 22.0, -6.0),
        "tissue": {
            "air": 0.03, "lung": 0.12, "muscle": 0.42, "fat": 0.88, "liver": 0.58, "spleen": 0.52,
            "stomach": 0.35, "blood": 0.66, "myocardium": 0.34, "bone": 0.70, "infarct": 1.05, "no_reflow": 0.16,
        },
        "gain": 190.0, "gamma": 1.05, "bias": 0.18, "noise": 0.03, "blur": 1.0, "turn": 14.0,
        "anatomy": {"normal": 0.2, "dilated": 0.7, "hypertrophic": 0.0, "right_load": 0.1},
    },
    {  # fat suppressed, strong coil shading
        "size": (84, 92, 8),
        "spacing": (1.65, 1.65, 8.0),
        "oblique": (10.0, 16.0, 10.0),
        "tissue": {
            "air": 0.02, "lung": 0.05, "muscle": 0.30, "fat": 0.14, "liver": 0.50, "spleen": 0.60,
            "stomach": 0.22, "blood": 0.64, "myocardium": 0.26, "bone": 0.15, "infarct": 1.00, "no_reflow": 0.14,
        },
        "gain": 2400.0, "gamma": 0.95, "bias": 0.20, "noise": 0.03, "blur": 0.7, "turn": -12.0,
        "anatomy": {"normal": 0.2, "dilated": 0.1, "hypertrophic": 0.6, "right_load": 0.1},
    },
    {  # dark-blood preparation: blood darker than muscle, scar alone is bright
        "size": (84, 84, 10),
        "spacing": (1.75, 1.75, 8.0),
        "oblique": (-20.0, -10.0, 0.0),
        "tissue": {
            "air": 0.02, "lung": 0.05, "muscle": 0.36, "fat": 0.78, "liver": 0.42, "spleen": 0.36,
            "stomach": 0.30, "blood": 0.18, "myocardium": 0.46, "bone": 0.60, "infarct": 1.00, "no_reflow": 0.14,
        },
        "gain": 430.0, "gamma": 1.0, "bias": 0.15, "noise": 0.025, "blur": 1.1, "turn": 22.0,
        "anatomy": {"normal": 0.3, "dilated": 0.1, "hypertrophic": 0.1, "right_load": 0.5},
    },
)  # fmt: skip

ABDOMINAL_CT: tuple[dict[str, Any], ...] = (
    {  # portal venous phase
        "size": (64, 64, 48),
        "spacing": (4.5, 4.5, 5.0),
        "tissue": {
            "fat": -105.0, "muscle": 58.0, "bone": 420.0, "marrow": 170.0, "lung": -820.0, "liver": 112.0,
            "spleen": 122.0, "pancreas": 92.0, "kidney": 178.0, "medulla": 160.0, "artery": 160.0, "vein": 165.0,
            "gallbladder": 12.0, "stomach": 15.0, "bowel_wall": 88.0, "bowel": 25.0,
        },
        "bias": 0.05, "noise": 10.0, "blur": 2.0, "turn": 0.0, "annotated_labels": (1,),
        "anatomy": {"normal": 0.8, "obese": 0.1, "thin": 0.1, "congested": 0.0},
    },
    {  # unenhanced
        "size": (64, 60, 48),
        "spacing": (4.9, 4.9, 5.0),
        "tissue": {
            "fat": -112.0, "muscle": 50.0, "bone": 380.0, "marrow": 150.0, "lung": -860.0, "liver": 62.0,
            "spleen": 48.0, "pancreas": 40.0, "kidney": 34.0, "medulla": 30.0, "artery": 42.0, "vein": 40.0,
            "gallbladder": 8.0, "stomach": 30.0, "bowel_wall": 40.0, "bowel": 20.0,
        },
        "bias": 0.08, "noise": 9.0, "blur": 2.6, "turn": 6.0, "annotated_labels": (2,),
        "anatomy": {"normal": 0.3, "obese": 0.6, "thin": 0.0, "congested": 0.1},
    },
    {  # arterial phase, sharp kernel
        "size": (68, 64, 52),
        "spacing": (4.2, 4.2, 4.6),
        "tissue": {
            "fat": -98.0, "muscle": 62.0, "bone": 460.0, "marrow": 200.0, "lung": -800.0, "liver": 74.0,
            "spleen": 150.0, "pancreas": 122.0, "kidney": 215.0, "medulla": 120.0, "artery": 330.0, "vein": 85.0,
            "gallbladder": 15.0, "stomach": 5.0, "bowel_wall": 118.0, "bowel": 18.0,
        },
        "bias": 0.03, "noise": 16.0, "blur": 1.0, "turn": -6.0, "annotated_labels": (3,),
        "anatomy": {"normal": 0.3, "obese": 0.0, "thin": 0.6, "congested": 0.1},
    },
    {  # fatty livers, oral contrast, low dose
        "size": (64, 64, 44),
        "spacing": (4.6, 4.6, 5.5),
        "tissue": {
            "fat": -108.0, "muscle": 55.0, "bone": 400.0, "marrow": 160.0, "lung": -840.0, "liver": 38.0,
            "spleen": 105.0, "pancreas": 78.0, "kidney": 150.0, "medulla": 145.0, "artery": 140.0, "vein": 145.0,
            "gallbladder": 20.0, "stomach": 220.0, "bowel_wall": 75.0, "bowel": 180.0,
        },
        "bias": 0.10, "noise": 20.0, "blur": 2.2, "turn": 3.0, "annotated_labels": (4,),
        "anatomy": {"normal": 0.2, "obese": 0.2, "thin": 0.0, "congested": 0.6},
    },
)  # fmt: skip

CARDIAC_CT: tuple[dict[str, Any], ...] = (
    {
        "size": (64, 64, 48),
        "spacing": (1.6, 1.6, 1.6),
        "tissue": {
            "fat": -85.0, "muscle": 70.0, "bone": 620.0, "lung": -840.0, "blood_left": 390.0, "blood_right": 170.0,
            "cava": 720.0, "leaflet": 130.0, "calcium": 1000.0,
        },
        "bias": 0.10, "noise": 18.0, "blur": 0.7, "turn": 0.0,
        "annotated_labels": (1, 2), "annotated_landmarks": ("RCC", "LCC", "NCC", "RCA", "LCA", "MS1", "MS2"),
        "anatomy": {"normal": 0.7, "dilated": 0.1, "small": 0.1, "heavy_calcium": 0.1},
    },
    {  # late scan: pale left heart, bright right heart
        "size": (64, 68, 48),
        "spacing": (1.5, 1.5, 1.7),
        "tissue": {
            "fat": -95.0, "muscle": 95.0, "bone": 560.0, "lung": -860.0, "blood_left": 230.0, "blood_right": 245.0,
            "cava": 290.0, "leaflet": 100.0, "calcium": 560.0,
        },
        "bias": 0.15, "noise": 26.0, "blur": 1.0, "turn": 28.0,
        "annotated_labels": (1,), "annotated_landmarks": ("RCC", "LCC", "NCC", "RCA", "LCA"),
        "anatomy": {"normal": 0.2, "dilated": 0.7, "small": 0.0, "heavy_calcium": 0.1},
    },
    {  # low tube voltage: very bright contrast, sharp kernel
        "size": (64, 64, 52),
        "spacing": (1.7, 1.7, 1.5),
        "tissue": {
            "fat": -105.0, "muscle": 60.0, "bone": 780.0, "lung": -820.0, "blood_left": 700.0, "blood_right": 80.0,
            "cava": 1450.0, "leaflet": 200.0, "calcium": 1450.0,
        },
        "bias": 0.10, "noise": 32.0, "blur": 0.4, "turn": -30.0,
        "annotated_labels": (), "annotated_landmarks": ("RCC", "LCC", "NCC", "RCA", "LCA", "MS1", "MS2"),
        "anatomy": {"normal": 0.2, "dilated": 0.0, "small": 0.7, "heavy_calcium": 0.1},
    },
    {  # little contrast agent, soft kernel
        "size": (68, 64, 48),
        "spacing": (1.6, 1.6, 1.8),
        "tissue": {
            "fat": -75.0, "muscle": 55.0, "bone": 500.0, "lung": -780.0, "blood_left": 170.0, "blood_right": 105.0,
            "cava": 450.0, "leaflet": 75.0, "calcium": 460.0,
        },
        "bias": 0.20, "noise": 22.0, "blur": 1.1, "turn": 40.0,
        "annotated_labels": (), "annotated_landmarks": ("RCC", "LCC", "NCC", "RCA", "LCA"),
        "anatomy": {"normal": 0.2, "dilated": 0.1, "small": 0.1, "heavy_calcium": 0.6},
    },
)  # fmt: skip
