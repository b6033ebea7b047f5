"""The default reward orders edits of phantom reports, whose truth is known, as a radiologist would."""

import pytest

from radflow.data.sections import parse_sections
from radflow.evaluation.gallery import ORDERS, GalleryConfig, measure_gallery
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward

EXPERTS = {"chest": "chexpert_rules", "carotid": "carotid_rules"}


@pytest.fixture(scope="module", params=list(EXPERTS))
def orders(request):
    """Share of the studies where each order holds, and the number of studies."""
    config = GalleryConfig(phantoms=request.param, reward=RewardConfig(expert=EXPERTS[request.param]), studies=40)
    made = measure_gallery(config, build_reward(config.reward, parse_sections))
    return {(row.better, row.worse): row for row in made.orders}


@pytest.mark.parametrize("order", ORDERS, ids=" before ".join)
def test_an_order_holds_in_nearly_every_study(orders, order):
    row = orders[order]
    if not row.studies:
        pytest.skip("no report of this modality has what is edited")
    assert row.holds >= (0.99 if order[1] == "every other edit" else 0.95), row
