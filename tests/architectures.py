"""One row an architecture: a tiny random model from its own config, and where its feed-forward layers really are.

The support matrix of the docs is made from this table; docs/add-a-model.md says how to add a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

HIDDEN, LAYERS, WIDTH, EXPERTS, EXPERT, SHARED, VOCABULARY = 32, 2, 24, 4, 16, 24, 330
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    **IDS,
}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": EXPERT}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Row:
    """An architecture and the truth about it."""

    architecture: str
    """The transformers class."""
    config: Callable[[], Any]
    """Makes its tiny config."""
    blocks: tuple[str, ...] = ("model.layers.{}.mlp",)
    """Modules whose outputs add up to the feed-forward output of layer {}."""
    widths: tuple[int, ...] = (WIDTH, WIDTH)
    """Neurons of each decoder layer."""
    family: str = ""
    """Well-known models of that class."""
    kind: str = "dense"
    separate: bool = False
    """The blocks are normalised apart: each has an output h of its own."""
    not_sampled: str = ""
    """Words of the reason why the built-in engine won't sample from it; all else works."""
    refused: str = ""
    """Words of the reason, for what is refused."""
    note: str = ""
    seed: int = 0
    """Of the random weights; another one where a router's choice is a tie but for rounding."""


def sizes(**more: Any) -> dict[str, Any]:
    """The common sizes with changes; None takes one out."""
    return {key: value for key, value in {**SIZES, **more}.items() if value is not None}


def config(name: str, **more: Any) -> Callable[[], Any]:
    """A factory of that config class with the common sizes."""
    return lambda: getattr(hf, name)(**sizes(**more))


def vision(name: str, text: Callable[[], Any], vision_type: str | None = None, **more: Any) -> Callable[[], Any]:
    """A factory of a vision-language config around a text config."""

    def make() -> Any:
        own = {**VISION, **({"model_type": vision_type} if vision_type else {})}
        own |= more.pop("vision_more", {})
        return getattr(hf, name)(text_config=text().to_dict(), vision_config=own, **more)

    return make


GPT2 = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 128,
        "initializer_range": 0.3, **IDS}  # fmt: skip
LAYER_MLP = "model.language_model.layers.{}.mlp"
ALL = EXPERTS * EXPERT
MIXTURE = (ALL, ALL)
gemma3 = config("Gemma3TextConfig", head_dim=8, sliding_window=8)
mistral = config("MistralConfig")
llama4 = config(
    "Llama4TextConfig",
    head_dim=8,
    intermediate_size=EXPERT,
    intermediate_size_mlp=WIDTH,
    num_local_experts=EXPERTS,
    num_experts_per_tok=1,
    interleave_moe_layer_step=2,
    attention_chunk_size=16,
)
MLA = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
       "num_key_value_heads": 4}  # fmt: skip

DENSE = [
    Row("LlamaForCausalLM", config("LlamaConfig"), family="Llama 2 to 3.3, SmolLM2, DeepSeek-R1 distills"),
    Row("MistralForCausalLM", mistral, family="Mistral 7B v0.3"),
    Row(
        "Mistral3ForConditionalGeneration",
        vision("Mistral3Config", mistral, "pixtral", vision_more={"head_dim": 8}),
        (LAYER_MLP,),
        family="Mistral Small 3.1 and 3.2",
    ),
    Row("Gemma3ForCausalLM", gemma3, family="Gemma 3 1B, 270M"),
    Row(
        "Gemma3ForConditionalGeneration",
        vision("Gemma3Config", gemma3, mm_tokens_per_image=4),
        (LAYER_MLP,),
        family="Gemma 3 4B to 27B",
    ),
    Row("GemmaForCausalLM", config("GemmaConfig", head_dim=8), family="Gemma 1"),
    Row("Gemma2ForCausalLM", config("Gemma2Config", head_dim=8), family="Gemma 2"),
    Row(
        "Gemma3nForCausalLM",
        config(
            "Gemma3nTextConfig",
            head_dim=8,
            intermediate_size=[WIDTH, WIDTH],
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCABULARY,
            num_kv_shared_layers=0,
            layer_types=["sliding_attention", "full_attention"],
            activation_sparsity_pattern=[0.0, 0.0],
            laurel_rank=8,
        ),
        ("model.layers.{}.mlp",),
        family="Gemma 3n",
    ),
    Row(
        "Gemma4ForCausalLM",
        config(
            "Gemma4TextConfig",
            head_dim=8,
            global_head_dim=8,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCABULARY,
            num_kv_shared_layers=0,
            layer_types=["sliding_attention", "full_attention"],
            enable_moe_block=False,
        ),
        family="Gemma 4",
    ),
    Row("Qwen2ForCausalLM", config("Qwen2Config"), family="Qwen2, Qwen2.5, DeepSeek-R1 distills"),
    Row("Qwen3ForCausalLM", config("Qwen3Config", head_dim=8), family="Qwen3, thinking"),
    Row(
        "Qwen2_5_VLForConditionalGeneration",
        vision(
            "Qwen2_5_VLConfig",
            config("Qwen2Config", rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]}),
            vision_more={"depth": 2, "num_heads": 4, "out_hidden_size": HIDDEN},
        ),
        (LAYER_MLP,),
        family="Qwen2.5-VL",
    ),
    Row(
        "Qwen3VLForConditionalGeneration",
        vision(
            "Qwen3VLConfig",
            config(
                "Qwen3VLTextConfig", head_dim=8, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]}
            ),
            vision_more={"depth": 2, "num_heads": 4, "out_hidden_size": HIDDEN, "deepstack_visual_indexes": [0]},
        ),
        (LAYER_MLP,),
        family="Qwen3-VL",
    ),
    Row("SmolLM3ForCausalLM", config("SmolLM3Config"), family="SmolLM3"),
    Row("Olmo2ForCausalLM", config("Olmo2Config"), family="OLMo 2"),
    Row("Olmo3ForCausalLM", config("Olmo3Config", sliding_window=8), family="OLMo 3"),
    Row("Phi3ForCausalLM", config("Phi3Config"), family="Phi-3, Phi-4", note="fused gate and up"),
    Row("PhiForCausalLM", config("PhiConfig", num_key_value_heads=4), family="Phi-1, Phi-2"),
    Row("GraniteForCausalLM", config("GraniteConfig", residual_multiplier=0.5), family="Granite 3"),
    Row("GlmForCausalLM", config("GlmConfig", head_dim=8), family="GLM-4 (first)", note="fused gate and up"),
    Row("Glm4ForCausalLM", config("Glm4Config", head_dim=8), family="GLM-4-0414", note="fused gate and up"),
    Row(
        "FalconForCausalLM",
        config("FalconConfig", ffn_hidden_size=WIDTH, num_key_value_heads=None),
        ("transformer.h.{}.mlp",),
        family="Falcon 7B",
        note="no gate",
    ),
    Row(
        "FalconForCausalLM (new decoder)",
        config(
            "FalconConfig",
            ffn_hidden_size=WIDTH,
            num_key_value_heads=None,
            new_decoder_architecture=True,
            num_kv_heads=2,
        ),
        ("transformer.h.{}.mlp",),
        family="Falcon 40B",
        note="no gate",
    ),
    Row(
        "GPT2LMHeadModel",
        lambda: hf.GPT2Config(**GPT2, n_inner=WIDTH),
        ("transformer.h.{}.mlp",),
        family="GPT-2",
        note="Conv1D",
    ),
    Row(
        "GPTNeoXForCausalLM",
        config("GPTNeoXConfig"),
        ("gpt_neox.layers.{}.mlp",),
        family="Pythia, GPT-NeoX",
        note="no gate",
    ),
    Row(
        "GPTJForCausalLM",
        lambda: hf.GPTJConfig(**GPT2, n_inner=WIDTH, rotary_dim=4),
        ("transformer.h.{}.mlp",),
        family="GPT-J",
        note="no gate",
    ),
    Row(
        "OPTForCausalLM",
        config(
            "OPTConfig", ffn_dim=WIDTH, word_embed_proj_dim=HIDDEN, num_key_value_heads=None, dropout=0.0, init_std=0.3
        ),
        ("model.decoder.layers.{}.fc2",),
        family="OPT",
        note="no gate, maps lie in the layer",
    ),
    Row(
        "BloomForCausalLM",
        lambda: hf.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=LAYERS, n_head=4, initializer_range=0.3, **IDS
        ),
        ("transformer.h.{}.mlp.dense_4h_to_h",),
        (128, 128),
        family="BLOOM",
        note="no gate",
    ),
    Row(
        "MptForCausalLM",
        lambda: hf.MptConfig(
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            n_layers=LAYERS,
            n_heads=4,
            expansion_ratio=2,
            max_seq_len=128,
            initializer_range=0.3,
            **IDS,
        ),
        ("transformer.blocks.{}.ffn.down_proj",),
        (128, 128),
        family="MPT",
        note="no gate",
    ),
    Row("StableLmForCausalLM", config("StableLmConfig"), family="StableLM 2"),
    Row("Starcoder2ForCausalLM", config("Starcoder2Config"), family="StarCoder 2", note="no gate"),
    Row("CohereForCausalLM", config("CohereConfig"), family="Command R"),
    Row("Cohere2ForCausalLM", config("Cohere2Config", sliding_window=8), family="Command R7B, Command A"),
    Row("NemotronForCausalLM", config("NemotronConfig"), family="Nemotron 4, Minitron", note="no gate"),
    Row("ArceeForCausalLM", config("ArceeConfig"), family="AFM 4.5B", note="no gate"),
    Row("Exaone4ForCausalLM", config("Exaone4Config", sliding_window=8), family="EXAONE 4"),
    Row("SeedOssForCausalLM", config("SeedOssConfig", head_dim=8), family="Seed-OSS"),
    Row("Ernie4_5ForCausalLM", config("Ernie4_5Config", head_dim=8), family="ERNIE 4.5 0.3B"),
    Row("BitNetForCausalLM", config("BitNetConfig"), family="BitNet b1.58", note="a norm before the down projection"),
    Row("Ministral3ForCausalLM", config("Ministral3Config", head_dim=8), family="Ministral 3"),
]
HYBRID = [
    Row(
        "Lfm2ForCausalLM",
        config("Lfm2Config", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        ("model.layers.{}.feed_forward",),
        family="LFM2",
        kind="hybrid",
    ),
    Row(
        "Qwen3NextForCausalLM (dense)",
        config(
            "Qwen3NextConfig",
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            mlp_only_layers=[0, 1],
            num_experts=0,
        ),
        family="Qwen3-Next",
        kind="hybrid",
    ),
    Row(
        "Qwen3_5ForCausalLM",
        config(
            "Qwen3_5TextConfig",
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        family="Qwen3.5",
        kind="hybrid",
    ),
    Row(
        "FalconH1ForCausalLM",
        config(
            "FalconH1Config",
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
        ),
        ("model.layers.{}.feed_forward",),
        family="Falcon-H1",
        kind="hybrid",
    ),
    Row(
        "BambaForCausalLM",
        config(
            "BambaConfig",
            attn_layer_indices=[1],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
        ),
        ("model.layers.{}.feed_forward",),
        family="Bamba",
        kind="hybrid",
    ),
    Row(
        "RecurrentGemmaForCausalLM",
        config(
            "RecurrentGemmaConfig",
            lru_width=HIDDEN,
            num_hidden_layers=3,
            intermediate_size=2 * WIDTH,
            head_dim=8,
            attention_window_size=8,
        ),
        ("model.layers.{}.mlp_block",),
        (WIDTH,) * 3,
        family="RecurrentGemma",
        kind="hybrid",
        not_sampled="keeps its recurrent state",
    ),
    Row(
        "NemotronHForCausalLM",
        config(
            "NemotronHConfig",
            layers_block_type=["mamba", "mlp", "attention", "mlp"],
            num_hidden_layers=None,
            mamba_num_heads=4,
            mamba_head_dim=8,
            n_groups=1,
            ssm_state_size=8,
            chunk_size=8,
            head_dim=8,
        ),
        ("model.layers.{}.mixer",),
        (0, WIDTH, 0, WIDTH),
        family="Nemotron-H, Nemotron Nano 2",
        kind="hybrid",
        note="layers without FFN",
    ),
    Row(
        "JambaForCausalLM (dense)",
        config(
            "JambaConfig",
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=1,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        ("model.layers.{}.feed_forward",),
        family="Jamba Reasoning 3B",
        kind="hybrid",
    ),
]
MIXTURES = [
    Row(
        "MixtralForCausalLM",
        config("MixtralConfig", num_local_experts=EXPERTS, intermediate_size=EXPERT),
        widths=MIXTURE,
        family="Mixtral 8x7B, 8x22B",
    ),
    Row(
        "Qwen3MoeForCausalLM",
        config("Qwen3MoeConfig", num_experts=EXPERTS, head_dim=8, **ROUTED),
        widths=MIXTURE,
        family="Qwen3-30B-A3B, 235B-A22B",
        seed=1,
    ),
    Row(
        "Qwen2MoeForCausalLM",
        config("Qwen2MoeConfig", num_experts=EXPERTS, shared_expert_intermediate_size=SHARED, **ROUTED),
        widths=(SHARED + ALL,) * 2,
        family="Qwen1.5-MoE, Qwen2-57B-A14B",
        note="shared expert with a gate",
    ),
    Row(
        "Qwen3NextForCausalLM",
        config(
            "Qwen3NextConfig",
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=EXPERTS,
            shared_expert_intermediate_size=SHARED,
            **ROUTED,
        ),
        widths=(SHARED + ALL,) * 2,
        family="Qwen3-Next-80B-A3B",
        note="hybrid; shared expert with a gate",
    ),
    Row(
        "Qwen3VLMoeForConditionalGeneration",
        vision(
            "Qwen3VLMoeConfig",
            config(
                "Qwen3VLMoeTextConfig",
                head_dim=8,
                num_experts=EXPERTS,
                rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]},
                **ROUTED,
            ),
            vision_more={"depth": 2, "num_heads": 4, "out_hidden_size": HIDDEN, "deepstack_visual_indexes": [0]},
        ),
        (LAYER_MLP,),
        MIXTURE,
        family="Qwen3-VL-30B-A3B",
    ),
    Row(
        "GptOssForCausalLM",
        config(
            "GptOssConfig",
            head_dim=8,
            num_local_experts=EXPERTS,
            num_experts_per_tok=2,
            intermediate_size=EXPERT,
            sliding_window=8,
        ),
        widths=MIXTURE,
        family="gpt-oss 20B, 120B",
        note="biases, transposed and interleaved",
    ),
    Row(
        "DeepseekV2ForCausalLM",
        config(
            "DeepseekV2Config",
            n_routed_experts=EXPERTS,
            n_shared_experts=1,
            first_k_dense_replace=1,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
            **{**ROUTED, **MLA},
        ),
        widths=(WIDTH, EXPERT + ALL),
        family="DeepSeek-V2",
    ),
    Row(
        "DeepseekV3ForCausalLM",
        config(
            "DeepseekV3Config",
            n_routed_experts=EXPERTS,
            n_shared_experts=1,
            first_k_dense_replace=1,
            n_group=2,
            topk_group=1,
            **{**ROUTED, **MLA},
        ),
        widths=(WIDTH, EXPERT + ALL),
        family="DeepSeek-V3, R1",
        note="first layers dense, shared expert",
    ),
    Row(
        "Glm4MoeForCausalLM",
        config(
            "Glm4MoeConfig",
            head_dim=8,
            n_routed_experts=EXPERTS,
            n_shared_experts=1,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            **ROUTED,
        ),
        widths=(WIDTH, EXPERT + ALL),
        family="GLM-4.5, GLM-4.6",
    ),
    Row(
        "Llama4ForCausalLM",
        llama4,
        ("model.layers.{}.feed_forward",),
        (WIDTH, EXPERT + ALL),
        family="Llama 4",
        note="router score on the input, shared expert",
    ),
    Row(
        "Llama4ForConditionalGeneration",
        vision(
            "Llama4Config",
            llama4,
            vision_more={
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "pixel_shuffle_ratio": 0.5,
            },
        ),
        ("language_model.model.layers.{}.feed_forward",),
        (WIDTH, EXPERT + ALL),
        family="Llama 4 Scout, Maverick",
    ),
    Row(
        "OlmoeForCausalLM",
        config("OlmoeConfig", num_experts=EXPERTS, num_experts_per_tok=2, intermediate_size=EXPERT),
        widths=MIXTURE,
        family="OLMoE",
    ),
    Row(
        "PhimoeForCausalLM",
        config("PhimoeConfig", num_local_experts=EXPERTS, intermediate_size=EXPERT),
        widths=MIXTURE,
        family="Phi-3.5-MoE",
        seed=2,
    ),
    Row(
        "GraniteMoeForCausalLM",
        config("GraniteMoeConfig", num_local_experts=EXPERTS, intermediate_size=EXPERT),
        ("model.layers.{}.block_sparse_moe",),
        MIXTURE,
        family="Granite 3 MoE",
    ),
    Row(
        "GraniteMoeSharedForCausalLM",
        config(
            "GraniteMoeSharedConfig",
            num_local_experts=EXPERTS,
            intermediate_size=EXPERT,
            shared_intermediate_size=SHARED,
        ),
        ("model.layers.{}.block_sparse_moe", "model.layers.{}.shared_mlp"),
        (SHARED + ALL,) * 2,
        family="Granite shared MoE",
        note="shared expert beside the mixture",
    ),
    Row(
        "GraniteMoeHybridForCausalLM",
        config(
            "GraniteMoeHybridConfig",
            num_local_experts=EXPERTS,
            intermediate_size=EXPERT,
            shared_intermediate_size=SHARED,
            layer_types=["mamba", "attention"],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=8,
            mamba_chunk_size=8,
        ),
        ("model.layers.{}.block_sparse_moe", "model.layers.{}.shared_mlp"),
        (SHARED + ALL,) * 2,
        family="Granite 4",
        note="hybrid; shared expert beside the mixture",
    ),
    Row(
        "Lfm2MoeForCausalLM",
        config(
            "Lfm2MoeConfig", layer_types=["conv", "full_attention"], num_experts=EXPERTS, num_dense_layers=1, **ROUTED
        ),
        ("model.layers.{}.feed_forward",),
        (WIDTH, ALL),
        family="LFM2-8B-A1B",
        note="hybrid",
    ),
    Row(
        "JambaForCausalLM",
        config(
            "JambaConfig",
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=EXPERTS,
            num_experts_per_tok=2,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        ("model.layers.{}.feed_forward",),
        (WIDTH, EXPERTS * WIDTH),
        family="Jamba 1.5",
        note="hybrid",
    ),
    Row(
        "Ernie4_5_MoeForCausalLM",
        config(
            "Ernie4_5_MoeConfig",
            head_dim=8,
            moe_num_experts=EXPERTS,
            moe_k=2,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            moe_layer_interval=1,
            moe_intermediate_size=EXPERT,
        ),
        widths=(WIDTH, EXPERT + ALL),
        family="ERNIE 4.5 21B-A3B",
    ),
    Row(
        "HunYuanMoEV1ForCausalLM",
        config("HunYuanMoEV1Config", head_dim=8, num_experts=EXPERTS, moe_topk=2, intermediate_size=EXPERT),
        widths=(EXPERT + ALL,) * 2,
        family="Hunyuan-A13B",
    ),
    Row(
        "MiniMaxM2ForCausalLM",
        config(
            "MiniMaxM2Config", head_dim=8, num_local_experts=EXPERTS, num_experts_per_tok=2, intermediate_size=EXPERT
        ),
        widths=MIXTURE,
        family="MiniMax-M2",
    ),
    Row(
        "NemotronHForCausalLM (experts)",
        config(
            "NemotronHConfig",
            layers_block_type=["mamba", "moe", "attention", "mlp"],
            num_hidden_layers=None,
            mamba_num_heads=4,
            mamba_head_dim=8,
            n_groups=1,
            ssm_state_size=8,
            chunk_size=8,
            head_dim=8,
            n_routed_experts=EXPERTS,
            moe_shared_expert_intermediate_size=SHARED,
            n_group=1,
            topk_group=1,
            **ROUTED,
        ),
        ("model.layers.{}.mixer",),
        (0, SHARED + ALL, 0, WIDTH),
        family="Nemotron 3 Nano",
        note="experts without a gate, layers without FFN",
    ),
    Row(
        "Gemma4ForCausalLM (experts)",
        config(
            "Gemma4TextConfig",
            head_dim=8,
            global_head_dim=8,
            hidden_size_per_layer_input=0,
            num_kv_shared_layers=0,
            layer_types=["sliding_attention", "full_attention"],
            enable_moe_block=True,
            num_experts=EXPERTS,
            top_k_experts=2,
            moe_intermediate_size=EXPERT,
        ),
        ("model.layers.{}.mlp", "model.layers.{}.experts"),
        (WIDTH + ALL,) * 2,
        separate=True,
        family="Gemma 4 26B-A4B",
        note="dense part and experts are normalised apart: each has its own h",
    ),
    Row(
        "LagunaForCausalLM",
        config(
            "LagunaConfig",
            head_dim=8,
            num_experts=EXPERTS,
            shared_expert_intermediate_size=SHARED,
            moe_routed_scaling_factor=2.5,
            mlp_layer_types=["dense", "sparse"],
            layer_types=["sliding_attention", "full_attention"],
            num_attention_heads_per_layer=[4, 4],
            sliding_window=8,
            **ROUTED,
        ),
        widths=(WIDTH, SHARED + ALL),
        family="Laguna",
        note="scaling factor after the experts",
    ),
]
MIXTURES = [Row(**{**row.__dict__, "kind": "mixture"}) for row in MIXTURES]
REFUSED = [
    Row(
        "JetMoeForCausalLM",
        config(
            "JetMoeConfig", num_local_experts=EXPERTS, num_experts_per_tok=2, kv_channels=8, intermediate_size=EXPERT
        ),
        refused="experts that the locator doesn't know",
    ),
    Row(
        "DbrxForCausalLM",
        lambda: hf.DbrxConfig(
            d_model=HIDDEN,
            n_heads=4,
            n_layers=LAYERS,
            max_seq_len=128,
            vocab_size=VOCABULARY,
            attn_config={"kv_n_heads": 2, "rope_theta": 1e4},
            ffn_config={"ffn_hidden_size": EXPERT, "hidden_size": HIDDEN, "moe_num_experts": EXPERTS, "moe_top_k": 2},
            **IDS,
        ),
        refused="DbrxForCausalLM",
    ),
    Row(
        "MambaForCausalLM",
        lambda: hf.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=4, **IDS
        ),
        refused="No feed-forward layer",
    ),
    Row(
        "Mamba2ForCausalLM",
        lambda: hf.Mamba2Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            state_size=4,
            num_heads=8,
            head_dim=8,
            n_groups=1,
            **IDS,
        ),
        refused="No feed-forward layer",
    ),
    Row(
        "RwkvForCausalLM",
        lambda: hf.RwkvConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, attention_hidden_size=HIDDEN, **IDS
        ),
        refused="No feed-forward layer",
    ),
    Row(
        "DogeForCausalLM (experts)",
        config("DogeConfig", is_moe=True, num_experts=16, num_experts_per_tok=2),
        refused="DogeForCausalLM",
    ),
    Row(
        "LongcatFlashForCausalLM",
        config(
            "LongcatFlashConfig",
            num_layers=2,
            num_hidden_layers=4,
            ffn_hidden_size=WIDTH,
            expert_ffn_hidden_size=EXPERT,
            n_routed_experts=EXPERTS,
            zero_expert_num=2,
            moe_topk=2,
            **{**MLA},
        ),
        refused="several feed-forward parts",
    ),
    Row(
        "Zamba2ForCausalLM",
        config(
            "Zamba2Config",
            num_hidden_layers=3,
            hybrid_layer_ids=[1],
            layers_block_type=["mamba", "hybrid", "mamba"],
            mamba_d_state=8,
            n_mamba_heads=8,
            mamba_headdim=8,
            chunk_size=8,
            num_mem_blocks=1,
            attention_head_dim=16,
            attention_hidden_size=64,
            adapter_rank=4,
        ),
        refused="Zamba2ForCausalLM",
    ),
    Row(
        "NemotronHForCausalLM (latent)",
        config(
            "NemotronHConfig",
            layers_block_type=["mamba", "moe", "attention", "mlp"],
            num_hidden_layers=None,
            mamba_num_heads=4,
            mamba_head_dim=8,
            n_groups=1,
            ssm_state_size=8,
            chunk_size=8,
            head_dim=8,
            n_routed_experts=EXPERTS,
            moe_shared_expert_intermediate_size=SHARED,
            moe_latent_size=16,
            n_group=1,
            topk_group=1,
            **ROUTED,
        ),
        refused="writes into a space of 16",
    ),
]
REFUSED = [Row(**{**row.__dict__, "kind": "refused"}) for row in REFUSED]
ROWS = [*DENSE, *HYBRID, *MIXTURES, *REFUSED]


def exists(row: Row) -> bool:
    """Whether this transformers has the class."""
    return hasattr(hf, class_name(row))


def class_name(row: Row) -> str:
    """The class without the variant in brackets."""
    return row.architecture.split(" ")[0]


def network(row: Row, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny random model, in evaluation mode, with biases other than zero."""
    torch.manual_seed(row.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(hf, class_name(row))(row.config())
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 and (not bool(torch.isfinite(parameter).all()) or not bool(parameter.any())):
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    made.generation_config.eos_token_id = 2
    cast(made, dtype)
    return made.eval().requires_grad_(False)


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the floating-point type in place; `.to` would turn Llama 4's complex rotations into real numbers."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
