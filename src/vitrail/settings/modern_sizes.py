"""Published modern Vision Transformers: the fields that make each, by our names and by those of timm and Meta."""

from __future__ import annotations

from typing import Any

_Row = dict[str, Any]


def _shape(embed_dim: int, depth: int, num_heads: int, *parts: _Row, **fields: Any) -> _Row:
    """Return a row: width, depth and heads, with the fields of the parts; the later wins."""
    merged: _Row = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    for part in (*parts, fields):
        merged |= part
    return merged


_SPLIT_SWIGLU: _Row = {"mlp": "swiglu", "gate": "split"}
_COUNTED: _Row = {"rope": "grid", "rope_layout": "interleaved", "rope_temperature": 1e4}
_MEAN: _Row = {"pool": "avg", "fc_norm": True}
_PLAIN: _Row = {"norm_eps": 1e-6, "init_values": None, "reg_tokens": 0}
_LEARNED: _Row = {**_PLAIN, "pos_embed": "learn"}
_EVA: _Row = {**_LEARNED, **_MEAN, "rope": "none", "patch_size": 14}
_EVA02: _Row = {**_EVA, **_COUNTED, "rope_ref_grid": 16, "mlp": "swiglu", "mlp_ratio": 8 / 3}
_EVA02_LARGE: _Row = {**_EVA02, **_SPLIT_SWIGLU, "scale_mlp": True, "qkv": "split"}
_EVA02_CLIP: _Row = {**_EVA02_LARGE, "scale_attn_inner": True, "pool": "cls", "fc_norm": False}
_POST: _Row = {"norm_position": "res-post", "pool": "cls", "fc_norm": False}
_L_RATIO: _Row = {"mlp_ratio": 2730 / 1024}
_SBB: _Row = {**_PLAIN, **_COUNTED, **_MEAN, "rope_ref_grid": 16, "init_values": 1e-5, "class_token": False, "img_size": 256}
_PE: _Row = {**_LEARNED, **_COUNTED, "norm_eps": 1e-5, "key_bias": True, "pre_norm": True, "rope_axes": "xy"}
_PE_CORE: _Row = {**_PE, "rope_offset": 1.0, "pool": "map", "pool_include_prefix": True, "pool_heads": 8}
_PE_DENSE: _Row = {**_PE, "rope_offset": 1.0, "rope_ref_grid": 32, "pool": "avg", "final_norm": False}
_PE_G: _Row = {"patch_size": 14, "mlp_ratio": 8960 / 1536, "class_token": False, "rope_offset": 0.0, "rope_ref_grid": 32}
_PE_G |= {"img_size": 448}
_NAFLEX: _Row = {**_LEARNED, "key_bias": True, "rope": "none", "class_token": False, "pos_grid": 16, "img_size": 384}
_NAFLEX_GAP: _Row = {**_NAFLEX, **_MEAN, "init_values": 1e-5, "reg_tokens": 4}
_NAFLEX_MAP: _Row = {**_NAFLEX, "init_values": 1e-5, "reg_tokens": 1, "pool": "map"}
_NAFLEX_SIGLIP: _Row = {**_NAFLEX, "pool": "map", "mlp": "gelu_tanh", "pos_resize": "bilinear"}
_SO150M2: _Row = {"mlp_ratio": 34 / 13, "qkv_bias": False, "reg_tokens": 1}
_RADIO: _Row = {**_NAFLEX, "class_token": True, "no_embed_class": True, "final_norm": False, "pos_grid": 128}
_RADIO |= {"pos_resize": "linear", "pos_square": True, "reg_tokens": 7, "img_size": 512}
_CORNERS: _Row = {"pos_resize": "linear-corners"}
_ROPE: _Row = {**_PLAIN, **_COUNTED, "rope_axes": "xy", "rope_temperature": 100.0, "init_values": 1e-5, "key_bias": True}
_MIXED: _Row = {"rope": "mixed", "rope_temperature": 10.0}
_BESIDE: _Row = {"pos_embed": "learn", "no_embed_class": True}
_SAPIENS2: _Row = {"norm": "rms", "norm_eps": 1e-6, "qkv": "split", "key_bias": True, "qk_norm": True, "mlp": "swiglu"}
_SAPIENS2 |= {"reg_tokens": 8, "init_values": 1.0, "layer_scale": "attention", "full_attention_blocks": 8, "rope_rescale": 2.0}
_SAPIENS2 |= {"img_size": (1024, 768)}
_AIMV2: _Row = {**_LEARNED, **_SPLIT_SWIGLU, "norm": "rms", "norm_eps": 1e-5, "rope": "none", "embed_norm": True}
_AIMV2 |= {"patch_size": 14, "class_token": False, "pool": "avg"}
_AIMV2 |= {"qkv_bias": False, "proj_bias": False, "mlp_bias": False}
_VJEPA2: _Row = {**_PLAIN, "rope": "video", "rope_layout": "interleaved", "rope_temperature": 1e4, "key_bias": True}
_VJEPA2 |= {"class_token": False, "pool": "avg", "img_size": 256}

MODERN_SIZES: dict[str, _Row] = {  # parameters at 1000 classes
    "dinov3_s16": _shape(384, 12, 6),  # 21_981_160
    "dinov3_splus16": _shape(384, 12, 6, _SPLIT_SWIGLU),  # 29_077_480
    "dinov3_b16": _shape(768, 12, 12),  # 86_428_648
    "dinov3_l16": _shape(1024, 24, 16),  # 304_153_576
    "dinov3_hplus16": _shape(1280, 32, 20, _SPLIT_SWIGLU),  # 841_872_360
    "dinov3_7b16": _shape(4096, 40, 32, _SPLIT_SWIGLU, mlp_ratio=2.0, qkv_bias=False),  # 6_720_127_976
    "eva_g14": _shape(1408, 40, 16, _EVA, mlp_ratio=6144 / 1408),  # 1_012_555_112
    "eva_g14_clip": _shape(1408, 40, 16, _EVA, mlp_ratio=6144 / 1408, pool="cls", fc_norm=False),  # 1_012_555_112
    "eva02_t14": _shape(192, 12, 3, _EVA02),  # 5_695_144
    "eva02_s14": _shape(384, 12, 6, _EVA02),  # 22_006_120
    "eva02_b14": _shape(768, 12, 12, _EVA02_LARGE),  # 86_527_720
    "eva02_l14": _shape(1024, 24, 16, _EVA02_LARGE, _L_RATIO),  # 304_293_800
    "eva02_b16_clip": _shape(768, 12, 12, _EVA02_CLIP, patch_size=16),  # 86_638_312
    "eva02_l14_clip": _shape(1024, 24, 16, _EVA02_CLIP, _L_RATIO),  # 304_342_952
    "eva02_e14_clip": _shape(1792, 64, 16, _EVA, _POST, mlp_ratio=15360 / 1792),  # 4_350_513_896
    "pe_core_t16": _shape(192, 12, 3, _PE_CORE, img_size=384, rope_ref_grid=24),  # 6_235_240
    "pe_core_s16": _shape(384, 12, 6, _PE_CORE, img_size=384, rope_ref_grid=24),  # 23_971_048
    "pe_core_b16": _shape(768, 12, 12, _PE_CORE, rope_ref_grid=14),  # 93_655_528
    "pe_core_l14": _shape(1024, 24, 16, _PE_CORE, img_size=336, patch_size=14, rope_ref_grid=24),  # 317_127_656
    "pe_core_g14": _shape(1536, 50, 16, _PE_CORE, _PE_G, pool_mlp_ratio=4.0),  # 1_881_603_560
    "pe_lang_l14": _shape(1024, 23, 16, _PE_DENSE, img_size=448, patch_size=14, init_values=0.1),  # 292_440_040
    "pe_lang_g14": _shape(1536, 47, 16, _PE_DENSE, _PE_G, init_values=0.1),  # 1_742_459_624
    "pe_spatial_t16": _shape(192, 12, 3, _PE_DENSE, img_size=512),  # 5_876_200
    "pe_spatial_s16": _shape(384, 12, 6, _PE_DENSE, img_size=512),  # 22_368_232
    "pe_spatial_b16": _shape(768, 12, 12, _PE_DENSE, img_size=512),  # 87_202_792
    "pe_spatial_l14": _shape(1024, 24, 16, _PE_DENSE, img_size=448, patch_size=14),  # 304_989_160
    "pe_spatial_g14": _shape(1536, 50, 16, _PE_DENSE, _PE_G, init_values=0.1),  # 1_853_424_104
    "aimv2_l14": _shape(1024, 24, 8, _AIMV2, mlp_ratio=2.75),  # 310_222_824
    "aimv2_h14": _shape(1536, 24, 12, _AIMV2, mlp_ratio=2.6667),  # 682_388_968
    "aimv2_1b14": _shape(2048, 24, 16, _AIMV2, mlp_ratio=2.75),  # 1_237_007_336
    "aimv2_3b14": _shape(3072, 24, 24, _AIMV2, mlp_ratio=2.6667),  # 2_723_731_432
    "vjepa2_l16": _shape(1024, 24, 16, _VJEPA2),  # 304_123_880
    "vjepa2_h16": _shape(1280, 32, 16, _VJEPA2),  # 631_945_960
    "vjepa2_g16": _shape(1408, 40, 22, _VJEPA2, mlp_ratio=48 / 11),  # 1_012_501_608
    "rope_s16": _shape(384, 12, 6, _ROPE),  # 21_984_232
    "rope_b16": _shape(768, 12, 12, _ROPE),  # 86_434_792
    "rope_l16": _shape(1024, 24, 16, _ROPE),  # 304_174_056
}
"""Our names."""

_NO_BIAS: _Row = {"qkv_bias": False}
_TIMM: dict[str, _Row] = {
    "vit_tiny_patch16_dinov3_qkvb": _shape(192, 12, 3, pool="avg"),
    "vit_small_patch16_dinov3": MODERN_SIZES["dinov3_s16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_small_plus_patch16_dinov3": MODERN_SIZES["dinov3_splus16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_base_patch16_dinov3": MODERN_SIZES["dinov3_b16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_large_patch16_dinov3": MODERN_SIZES["dinov3_l16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_huge_plus_patch16_dinov3": MODERN_SIZES["dinov3_hplus16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_small_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_s16"] | {"pool": "avg"},
    "vit_small_plus_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_splus16"] | {"pool": "avg"},
    "vit_base_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_b16"] | {"pool": "avg"},
    "vit_large_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_l16"] | {"pool": "avg"},
    "vit_huge_plus_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_hplus16"] | {"pool": "avg"},
    "vit_7b_patch16_dinov3": MODERN_SIZES["dinov3_7b16"] | {"pool": "avg"},
    "vit_small_patch16_lingbot": MODERN_SIZES["dinov3_s16"],
    "vit_base_patch16_lingbot": MODERN_SIZES["dinov3_b16"],
    "vit_large_patch16_lingbot": MODERN_SIZES["dinov3_l16"],
    "vit_giant_patch16_lingbot": _shape(1536, 40, 24, _SPLIT_SWIGLU, _NO_BIAS, mlp_ratio=8 / 3),
    "eva_giant_patch14": MODERN_SIZES["eva_g14"],
    "eva_giant_patch14_clip": MODERN_SIZES["eva_g14_clip"],
    "eva02_tiny_patch14": MODERN_SIZES["eva02_t14"],
    "eva02_small_patch14": MODERN_SIZES["eva02_s14"],
    "eva02_base_patch14": MODERN_SIZES["eva02_b14"],
    "eva02_large_patch14": MODERN_SIZES["eva02_l14"],
    "eva02_base_patch16_clip": MODERN_SIZES["eva02_b16_clip"],
    "eva02_large_patch14_clip": MODERN_SIZES["eva02_l14_clip"],
    "eva02_enormous_patch14_clip": MODERN_SIZES["eva02_e14_clip"],
    "vit_medium_patch16_rope_reg1_gap": _shape(512, 12, 8, _SBB, reg_tokens=1),
    "vit_mediumd_patch16_rope_reg1_gap": _shape(512, 20, 8, _SBB, _NO_BIAS, reg_tokens=1),
    "vit_betwixt_patch16_rope_reg4_gap": _shape(640, 12, 10, _SBB, reg_tokens=4),
    "vit_base_patch16_rope_reg1_gap": _shape(768, 12, 12, _SBB, reg_tokens=1),
    "vit_pe_core_tiny_patch16": MODERN_SIZES["pe_core_t16"],
    "vit_pe_core_small_patch16": MODERN_SIZES["pe_core_s16"],
    "vit_pe_core_base_patch16": MODERN_SIZES["pe_core_b16"],
    "vit_pe_core_large_patch14": MODERN_SIZES["pe_core_l14"],
    "vit_pe_core_gigantic_patch14": MODERN_SIZES["pe_core_g14"],
    "vit_pe_lang_large_patch14": MODERN_SIZES["pe_lang_l14"],
    "vit_pe_lang_gigantic_patch14": MODERN_SIZES["pe_lang_g14"],
    "vit_pe_spatial_tiny_patch16": MODERN_SIZES["pe_spatial_t16"],
    "vit_pe_spatial_small_patch16": MODERN_SIZES["pe_spatial_s16"],
    "vit_pe_spatial_base_patch16": MODERN_SIZES["pe_spatial_b16"],
    "vit_pe_spatial_large_patch14": MODERN_SIZES["pe_spatial_l14"],
    "vit_pe_spatial_gigantic_patch14": MODERN_SIZES["pe_spatial_g14"],
    "vit_base_patch16_sapiens2": _shape(768, 12, 12, _SAPIENS2, kv_heads=6),
    "vit_large_patch16_sapiens2": _shape(1024, 24, 16, _SAPIENS2, kv_heads=8),
    "vit_huge_patch16_sapiens2": _shape(1280, 32, 16, _SAPIENS2, kv_heads=8),
    "vit_giant_patch16_sapiens2": _shape(1536, 40, 24, _SAPIENS2, kv_heads=12),
    "vit_5b_patch16_sapiens2": _shape(2432, 56, 32, _SAPIENS2, kv_heads=16),
    "naflexvit_base_patch16_gap": _shape(768, 12, 12, _NAFLEX_GAP),
    "naflexvit_base_patch16_par_gap": _shape(768, 12, 12, _NAFLEX_GAP, pos_square=True),
    "naflexvit_base_patch16_parfac_gap": _shape(768, 12, 12, _NAFLEX_GAP, pos_square=True, pos_resize="linear"),
    "naflexvit_base_patch16_map": _shape(768, 12, 12, _NAFLEX_MAP),
    "naflexvit_so150m2_patch16_reg1_gap": _shape(832, 21, 13, _NAFLEX_GAP, _SO150M2),
    "naflexvit_so150m2_patch16_reg1_map": _shape(832, 21, 13, _NAFLEX_MAP, _SO150M2),
    "naflexvit_base_patch16_siglip": _shape(768, 12, 12, _NAFLEX_SIGLIP),
    "naflexvit_so400m_patch16_siglip": _shape(1152, 27, 16, _NAFLEX_SIGLIP, mlp_ratio=3.7362),
    "naflexvit_base_patch16_radio_v3": _shape(768, 12, 12, _RADIO, _CORNERS, init_values=1e-5),
    "naflexvit_large_patch16_radio_v3": _shape(1024, 24, 16, _RADIO, init_values=1e-5),
    "naflexvit_huge_patch16_radio_v3": _shape(1280, 32, 16, _RADIO, _CORNERS),
    "naflexvit_giant_patch16_radio_v3": _shape(1536, 40, 24, _RADIO),
    "naflexvit_so400m_patch16_radio_v4": _shape(1152, 27, 16, _RADIO, mlp_ratio=4304 / 1152, reg_tokens=9),
    "naflexvit_huge_patch16_radio_v4": _shape(1280, 32, 16, _RADIO, reg_tokens=9),
    "aimv2_large_patch14": MODERN_SIZES["aimv2_l14"],
    "aimv2_huge_patch14": MODERN_SIZES["aimv2_h14"],
    "aimv2_1b_patch14": MODERN_SIZES["aimv2_1b14"],
    "aimv2_3b_patch14": MODERN_SIZES["aimv2_3b14"],
}
for _size in ("small", "base", "large"):
    _axial = MODERN_SIZES[f"rope_{_size[0]}16"]
    _TIMM[f"vit_{_size}_patch16_rope"] = _axial
    _TIMM[f"vit_{_size}_patch16_rope_mixed"] = _axial | _MIXED
    _TIMM[f"vit_{_size}_patch16_rope_ape"] = _axial | _BESIDE
    _TIMM[f"vit_{_size}_patch16_rope_mixed_ape"] = _axial | _MIXED | _BESIDE
_VIT: _Row = {**_LEARNED, "rope": "none", "key_bias": True}  # timm's VisionTransformer
_ALL_BIASES: _Row = {"key_bias": True}
_NO_BIASES: _Row = {"qkv_bias": False, "key_bias": False}
_BEIT3: _Row = {**_VIT, **_MEAN, "norm_eps": 1e-5, "scale_attn_inner": True, "scale_mlp": True}
_XP: _Row = {**_VIT, **_NO_BIASES, "block": "parallel", "norm": "rms", "pre_norm": True, "qk_norm": True}
_XP |= {"no_embed_class": True}
_PAIR: _Row = {**_VIT, "block": "pair", "init_values": 1e-5}
_WEE: _Row = {**_VIT, **_MEAN, "init_values": 1e-5, "class_token": False, "reg_tokens": 1, "mlp_ratio": 5.0, "img_size": 256}
_DIFFERENTIAL: _Row = {"attention": "differential"}
_RELPOS: _Row = {**_PLAIN, "rope": "none", "relative_bias": "block", "class_token": False, "pool": "avg", "init_values": 1e-6}
_RELPOS_PLUS: _Row = {**_RELPOS, **_ALL_BIASES}
_RELPOS |= _NO_BIASES
_RPN: _Row = {"norm_position": "res-post", "init_values": None}
_TOKEN: _Row = {"class_token": True, "pool": "cls"}
_TIMM |= {
    "beit3_base_patch16": _shape(768, 12, 12, _BEIT3),
    "beit3_large_patch16": _shape(1024, 24, 16, _BEIT3),
    "beit3_giant_patch14": _shape(1408, 40, 16, _BEIT3, patch_size=14, mlp_ratio=6144 / 1408),
    "vit_base_patch16_rpn": _shape(768, 12, 12, _VIT, _MEAN, _NO_BIASES, _RPN, class_token=False),
    "vit_base_patch16_xp": _shape(768, 12, 12, _XP),
    "vit_large_patch14_xp": _shape(1024, 24, 16, _XP, patch_size=14),
    "vit_huge_patch14_xp": _shape(1280, 32, 16, _XP, patch_size=14),
    "vit_small_patch16_18x2": _shape(384, 18, 6, _PAIR),
    "vit_base_patch16_18x2": _shape(768, 18, 12, _PAIR),
    "vit_dwee_patch16_reg1_gap": _shape(256, 14, 4, _WEE, _DIFFERENTIAL),
    "vit_pwee_patch16_reg1_gap": _shape(256, 16, 4, _WEE, block="parallel"),
    "vit_dpwee_patch16_reg1_gap": _shape(256, 16, 4, _WEE, _DIFFERENTIAL, block="parallel"),
    "vit_dlittle_patch16_reg1_gap": _shape(320, 14, 5, _WEE, _DIFFERENTIAL, mlp_ratio=5.6),
    "test_vit4": _shape(96, 9, 3, _WEE, norm="rms", mlp_ratio=3.0, img_size=160),
    "vit_relpos_base_patch32_plus_rpn": _shape(896, 12, 14, _RELPOS_PLUS, _RPN, patch_size=32, img_size=256),
    "vit_relpos_base_patch16_plus": _shape(896, 12, 14, _RELPOS_PLUS, img_size=240),
    "vit_relpos_small_patch16": _shape(384, 12, 6, _RELPOS, _MEAN),
    "vit_relpos_medium_patch16": _shape(512, 12, 8, _RELPOS, _MEAN),
    "vit_relpos_base_patch16": _shape(768, 12, 12, _RELPOS, _MEAN),
    "vit_srelpos_small_patch16": _shape(384, 12, 6, _RELPOS, relative_bias="shared", relative_hidden=384),
    "vit_srelpos_medium_patch16": _shape(512, 12, 8, _RELPOS, relative_bias="shared", relative_hidden=512),
    "vit_relpos_medium_patch16_cls": _shape(512, 12, 8, _RELPOS, _TOKEN, relative_hidden=256),
    "vit_relpos_base_patch16_cls": _shape(768, 12, 12, _RELPOS, _TOKEN),
    "vit_relpos_base_patch16_clsgap": _shape(768, 12, 12, _RELPOS, _MEAN, class_token=True),
    "vit_relpos_small_patch16_rpn": _shape(384, 12, 6, _RELPOS, _RPN),
    "vit_relpos_medium_patch16_rpn": _shape(512, 12, 8, _RELPOS, _RPN),
    "vit_relpos_base_patch16_rpn": _shape(768, 12, 12, _RELPOS, _RPN),
    "test_vit_relpos": _shape(96, 9, 3, _RELPOS, _MEAN, mlp_ratio=2.0, img_size=160),
}
_HUB = {"s16": "s16", "s16plus": "splus16", "b16": "b16", "l16": "l16", "h16plus": "hplus16", "7b16": "7b16"}
MODERN_ROWS: dict[str, _Row] = {
    **MODERN_SIZES,
    **_TIMM,
    **{f"dinov3_vit{m}": MODERN_SIZES[f"dinov3_{ours}"] for m, ours in _HUB.items()},
}
"""All names; an image size may follow them."""
