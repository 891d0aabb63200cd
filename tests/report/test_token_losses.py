"""The loss of every token and the passages of a page, against the model's own losses."""

from functools import partial

import numpy as np
import pytest

from minigpt.model import gpt
from minigpt.model.gpt import GPTConfig
from minigpt.report import passages
from minigpt.report import token_losses as losses_of
from minigpt.report.passages import passages_section
from minigpt.report.token_losses import SHOWN, rank_pairs, rank_passages, token_losses
from minigpt.sample.tasks import task_of
from tests.report.test_contents import TEXT, pairs, random_model, text  # noqa: F401

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("chunk", [1, 2**23])
def test_the_losses_of_tokens_have_the_mean_of_the_loss(text, pairs, chunk, monkeypatch):  # noqa: F811
    monkeypatch.setattr(losses_of, "LOGITS", chunk)
    for checkpoint, data in (text, pairs):
        task, config, tree = task_of(checkpoint.config), checkpoint.config, checkpoint.params.tree
        batch = next(task.eval_batches(data.val, config, 4))
        losses, top, p = token_losses(*batch, tree, config)
        count = task.count_targets(batch[1])
        expected = float(task.loss_forward(*batch, tree, config)[0])
        assert losses.sum() / count == pytest.approx(expected, rel=1e-5)
        assert top.shape == p.shape == (*batch[1].shape, 3)
        assert (np.diff(p, axis=-1) <= 0).all() and (p.sum(axis=-1) <= 1 + 1e-9).all()
        right = top[..., 0] == batch[1]
        np.testing.assert_allclose(losses[right], -np.log(p[..., 0][right]), rtol=1e-9)
        late = token_losses(*batch, tree, config, first=2)[0]
        np.testing.assert_allclose(late, losses[:, 2:], rtol=1e-5, atol=1e-9)


def test_passages_of_a_text_are_ranked_by_their_mean_loss(text):  # noqa: F811
    checkpoint, data = text
    found = rank_passages(checkpoint, data)
    assert len(found.worst) == len(found.best) == SHOWN
    ranked = [x.loss for x in (*found.worst, *found.best[::-1])]
    assert ranked == sorted(ranked, reverse=True) and ranked[0] > ranked[-1]
    val = data.tokenizer.decode(data.val.tolist())
    for passage in (*found.worst, *found.best):
        told = "".join(token.text for token in passage.tokens)
        assert passage.before + told in val and passage.before
        assert np.mean([token.loss for token in passage.tokens]) == pytest.approx(passage.loss)
        assert all(len(token.expected) == 3 for token in passage.tokens)
    T = checkpoint.config.block_size
    assert found.scored <= found.total < len(val)
    assert len(val) - found.total <= T  # the first context, and an incomplete window
    # The first passage by hand: what the model says of it with half a context before.
    ids = data.val[: T + 1].astype(np.int32)
    x = gpt.gpt_forward(ids[None, :-1], checkpoint.params.tree, checkpoint.config)[0]
    z = gpt.logits(x, checkpoint.params.tree)[0, T // 2 :].astype(float)
    by_hand = np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), ids[1 + T // 2 :]]
    first = val[T // 2 + 1 : T + 1]
    every = [p for p in (*rank_all(checkpoint, data),) if p.before + first in val[: T + 1]]
    (mine,) = [p for p in every if "".join(t.text for t in p.tokens) == first]
    np.testing.assert_allclose([t.loss for t in mine.tokens], by_hand, rtol=1e-4)


def rank_all(checkpoint, data):
    """All passages of a text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses_of, "SHOWN", 10**6)
        found = rank_passages(checkpoint, data, seconds=1e9)
    return [*found.worst, *found.best]


def test_the_time_bounds_how_many_are_looked_at(text, pairs):  # noqa: F811
    for rank, (checkpoint, data) in ((rank_passages, text), (rank_pairs, pairs)):
        few, all_of = rank(checkpoint, data, seconds=0), rank(checkpoint, data)
        assert 0 < few.scored <= all_of.scored
        assert rank(checkpoint, data, scored=1).scored < all_of.scored


def test_that_passages_were_left_out_is_said_only_where_some_were(text, monkeypatch):  # noqa: F811
    assert "at even distances" not in passages_section(*text).html
    monkeypatch.setattr(passages, "rank_passages", partial(rank_passages, scored=20))
    assert "validation tokens, at even distances" in passages_section(*text).html


def test_pairs_are_ranked_with_their_answers(pairs):  # noqa: F811
    checkpoint, data = pairs
    found = rank_pairs(checkpoint, data)
    asked = dict(data.val_pairs)
    for passage in (*found.worst, *found.best):
        assert passage.tokens[-1].text == " end"
        assert "".join(t.text for t in passage.tokens[:-1]) == asked[passage.before]
    assert found.worst[0].loss > found.best[0].loss and found.scored == found.total
    html = passages_section(checkpoint, data).html
    assert "<h3>Worst</h3>" in html and "source: " in html and "; answer: " in html


def test_what_a_passage_shows_is_said_without_data_and_cannot_break_the_page(text):  # noqa: F811
    checkpoint, data = text
    left = passages_section(checkpoint, None, "gone & lost")
    assert "gone &amp; lost" in left.html and not left.script
    section = passages_section(checkpoint, data)
    assert section.script == "passages.js" and section.html.count('title="') > 8
    assert "nats; expected" in section.html


def test_a_large_model_reads_shorter_windows():
    small, large = (GPTConfig(65, 1024, 2, 2, C) for C in (32, 2048))
    assert losses_of.sizes_of(small, 10**6) == (256, 512)
    assert losses_of.sizes_of(large, 10**6) == (128, 128)
    assert losses_of.sizes_of(large, 50)[0] == 50
