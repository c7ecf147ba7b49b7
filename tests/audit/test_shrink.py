"""A shrunk configuration keeps what must fit together."""

from typing import Any

from minibeft.audit.shrink import Way

RAW: dict[str, Any] = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None,
    "intermediate_size": 11008 + 2, "num_hidden_layers": 30, "n_routed_experts": 256, "num_experts_per_tok": None,
    "layer_types": ["linear"] * 5 + ["full"] + ["linear"] * 24, "num_feat_extract_layers": 7,
    "per_layer_config": {"5": {"hidden_size": 4096}, "11": {"hidden_size": 4096}},
    "heads_per_layer": [32] * 30, "rope_parameters": {"mrope_section": [16, 24, 24]},
}  # fmt: skip


def test_layers_that_go_take_their_entries_with_them():
    small = Way(8, fewer_heads=False).shrink(RAW)
    assert small["num_hidden_layers"] == len(small["layer_types"]) == len(small["heads_per_layer"]) == 6
    assert set(small["per_layer_config"]) == {"5"}
    assert small["num_feat_extract_layers"] == 7  # counts convolutions, which stay


def test_rotary_sections_still_fill_half_a_head():
    small = Way(8, fewer_heads=False).shrink(RAW)
    assert small["hidden_size"] // small["num_attention_heads"] == 2 * sum(small["rope_parameters"]["mrope_section"])


def test_experts_and_mlps_shrink_whatever_their_number_is():
    small = Way(16, fewer_heads=False).shrink(RAW)
    assert small["n_routed_experts"] == 64
    assert small["intermediate_size"] == 11010 // 16


def test_a_number_left_open_is_filled_in_only_where_asked():
    assert Way(8, fewer_heads=False).shrink(RAW)["head_dim"] is None
    small = Way(8, fewer_heads=False, fill=True).shrink(RAW)
    assert (small["head_dim"], small["num_key_value_heads"], small["num_experts_per_tok"]) == (16, 32, 2)


def test_tokens_keep_ids_of_their_own():
    """Ids are below the vocabulary's new size, none meets one that stays, and the next configuration begins anew."""
    ids = {"bos_token_id": 1023, "eos_token_id": [2, 50256, 50257], "pad_token_id": 50256}
    raw = RAW | ids | {"vocab_size": 50304, "text_config": {"image_token_id": 50258, "vocab_size": 50304}}
    way = Way(8, fewer_heads=False)
    small = way.shrink(raw)
    assert (small["bos_token_id"], small["eos_token_id"][0]) == (1023, 2)
    assert small["pad_token_id"] == small["eos_token_id"][1]
    given = [small["bos_token_id"], *small["eos_token_id"], small["text_config"]["image_token_id"]]
    assert len(set(given)) == len(given)
    assert max(given) < small["vocab_size"] == small["text_config"]["vocab_size"]
    assert way.shrink(RAW | {"pad_token_id": 70000})["pad_token_id"] == 1023
    assert way.shrink(raw) == small
