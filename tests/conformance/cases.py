"""The conformance cases (`reference/api.md` 6, all groups but RS, which has its own file): how many
there are in each group, which are tested in other folders, and which are left out and why."""

from __future__ import annotations

GROUPS = {
    "CB": 31,
    "CV": 43,
    "CS": 22,
    "CT": 21,
    "CJ": 14,
    "CP": 12,
    "EM": 12,
    "MD": 11,
    "AB": 33,
    "AT": 22,
    "AS": 17,
    "AC": 9,
    "AE": 8,
    "CE": 24,
    "BAD": 50,
}

_CHAT = "tests/neuron/test_chat_conformance.py::"
_STREAMS = "tests/neuron/test_chat_streams.py::"
_OPENAI = "tests/gateway/test_api_openai.py::"
_ANTHROPIC = "tests/gateway/test_api_anthropic.py::"
_CODEX = "tests/conformance/test_responses_clients.py::"
_FRAMING = "tests/hostile/test_framing.py::"
_FETCH = "tests/gateway/test_image_fetch.py::"
_RELAY = "tests/gateway/test_relay.py::"
_BODIES = "tests/hostile/test_bodies.py::"
_KEYS = "tests/gateway/auth/test_accounts.py::"
_QUEUE = "tests/gateway/test_queue.py::"

# id -> the tests, where they are in other folders.
ELSEWHERE = {
    "AB28": _KEYS + "test_each_header_form_is_read_in_each_dialect",
    "BAD30": f"{_QUEUE}test_a_full_line_makes_room_for_a_key_that_has_less_of_it "
    f"{_QUEUE}test_one_keys_crowd_delays_another_keys_request_by_one_turn",
    "BAD42": f"{_KEYS}test_each_header_form_is_read_in_each_dialect "
    f"{_KEYS}test_a_key_in_the_query_is_none "
    f"{_KEYS}test_two_credentials_of_one_kind_are_none "
    f"{_KEYS}test_keys_are_in_no_log_no_metric_and_no_request_to_a_neuron",
    "BAD44": _KEYS + "test_an_inference_key_opens_no_admin_route",
    "CV32": _KEYS + "test_each_header_form_is_read_in_each_dialect",
    "CV33": f"{_KEYS}test_each_header_form_is_read_in_each_dialect "
    "tests/gateway/auth/test_keyring.py::"
    "test_a_key_is_looked_up_by_its_hash_and_never_compared",
    "CV34": _KEYS + "test_a_key_may_use_the_models_on_its_list_only",
    "AB13": _CHAT + "test_a_limit_beyond_the_context_is_cut_or_refused_as_asked",
    "AS08": _RELAY + "test_silence_of_a_message_is_message_start_and_then_pings",
    "AS10": _ANTHROPIC + "test_a_client_that_leaves_mid_stream_frees_the_neuron",
    "BAD07": f"{_BODIES}test_a_body_over_the_cap_is_413 "
    f"{_FRAMING}test_a_length_that_is_too_small_does_not_let_the_rest_be_a_request",
    "BAD20": f"{_FETCH}test_a_redirect_to_the_inside_is_not_followed "
    f"{_FETCH}test_a_name_that_turns_inward_at_the_second_look_is_not_asked_again "
    f"{_FETCH}test_redirects_have_an_end",
    "BAD21": f"{_FETCH}test_a_body_without_end_is_cut_at_the_cap "
    f"{_FETCH}test_a_slow_drip_ends_with_the_time "
    f"{_FETCH}test_a_second_encoding_is_refused_before_it_is_unpacked "
    f"{_FETCH}test_what_is_no_image_is_refused_without_its_content",
    "BAD26": "tests/neuron/test_grammars.py::"
    "test_compiling_too_long_is_refused_and_others_are_not_kept_waiting_for_ever",
    "BAD31": "tests/service/test_lane.py::test_a_head_that_drips_is_408",
    "BAD33": _FRAMING + "test_what_cannot_be_framed_is_refused_and_nothing_after_it_is_read",
    "BAD34": _FRAMING + "test_a_harmful_request_id_is_replaced",
    "BAD36": _FRAMING + "test_a_client_that_waits_to_be_told_to_go_on_is_told",
    "BAD37": _FRAMING + "test_pipelined_requests_are_answered_in_order",
    "BAD38": f"{_OPENAI}test_a_client_that_leaves_mid_stream_frees_the_neuron "
    f"{_OPENAI}test_a_client_that_leaves_in_prefill_frees_the_neuron "
    f"{_OPENAI}test_a_client_that_leaves_the_queue_gives_its_place_up "
    f"{_OPENAI}test_a_client_that_leaves_before_a_plain_answer_frees_the_neuron",
    "BAD43": f"{_CHAT}test_a_second_long_prompt_is_cached_for_its_own_tenant_alone "
    f"{_KEYS}test_neurons_are_told_the_caller_and_never_what_clients_say_they_are",
    "BAD45": "tests/system/test_faults.py::"
    "test_a_neuron_killed_mid_stream_is_an_error_event_and_no_finish "
    "tests/neuron/test_device_fault.py::test_a_fault_under_load_leaves_no_request_without_an_answer",
    "CB12": "tests/text/test_detokenizer.py::test_a_character_is_never_cut "
    "tests/text/test_stop.py::test_cutting_the_text_makes_no_difference",
    "CB13": _CHAT + "test_a_seed_fixes_the_answer",
    "CB14": _STREAMS + "test_a_busy_batch_does_not_change_a_greedy_answer",
    "CB15": _CHAT + "test_a_bias_forces_and_forbids_tokens",
    "CB16": _CHAT + "test_a_bias_forces_and_forbids_tokens",
    "CB17": _CHAT + "test_a_penalty_stops_repetition",
    "CB28": _CHAT + "test_thinking_is_kept_apart_from_the_answer",
    "CB30": _CHAT + "test_effort_none_does_not_think",
    "CE09": _CODEX + "test_ce09_ce10_a_session_of_codex",
    "CE10": _CODEX + "test_ce09_ce10_a_session_of_codex",
    "CE11": _CODEX + "test_ce11_codex_learns_that_it_has_to_compact",
    "CS12": "tests/system/test_streams.py::"
    "test_a_client_that_leaves_mid_stream_frees_its_seat_within_a_second",
    "CS14": "tests/system/test_streams.py::"
    "test_a_client_that_stops_reading_blocks_neither_others_nor_the_shutdown",
    "CS15": _RELAY + "test_silence_within_a_stream_is_filled_with_comments",
    "CS17": _STREAMS + "test_a_stream_adds_up_to_the_whole_answer",
    "CS20": "tests/system/test_streams.py::test_a_stop_drains_the_streams_that_run",
    "CT14": "tests/neuron/test_structured_output.py::"
    "test_a_strict_tool_is_held_to_its_schema_where_the_model_calls_it",
    "CT18": "tests/text/tools/test_parser.py::"
    "test_junk_never_fails_and_is_read_alike_wherever_it_is_cut",
    "CV41": _OPENAI + "test_a_full_queue_is_429_with_a_hint",
    "CV43": _OPENAI + "test_a_neuron_killed_within_a_stream_gives_an_error_event_and_no_end",
    "EM11": "tests/neuron/test_embedding_conformance.py::"
    "test_the_defaults_of_common_clients_are_taken",
}

_OTHER_CLIENT = "runs another project's code, which no test here downloads"

# id -> why there is no test of that name.
LEFT_OUT = {
    "BAD47": "clock jumps, full disks and missing descriptors cannot be made in a test's process",
    "CB24": "no model of this engine sees yet",
    "CS13": "decided otherwise: a FIN means that the client is gone",
    "CE20": _OTHER_CLIENT,
    "CE21": _OTHER_CLIENT,
    "CE22": _OTHER_CLIENT,
    "CE23": _OTHER_CLIENT,
}
