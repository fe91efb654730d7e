"""The demo model on two nodes: token by token and feature by feature what one process gives."""

import importlib.util

import numpy as np
import pytest
from two_nodes import two_nodes

import hneurons
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.cluster.opening import open_cluster
from hneurons.errors import ModelNotFoundError
from hneurons.neurons.cett import Passage, PooledExtractor, batches
from hneurons.questions.sources import load_questions
from hneurons.studies.collect import Tools
from hneurons.types import REGIONS, Response

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


def test_responses_and_features_equal_those_of_one_process():
    try:
        model = hneurons.load_model("smollm2-135m", device="cpu")
    except ModelNotFoundError as error:
        pytest.skip(f"the demo model can't be fetched: {error}")
    questions = load_questions("starter", limit=24, seed=0).questions
    sampling = Sampling(temperature=0.7, max_new_tokens=16)
    rounds = [[Request(q, 0) for q in questions], [Request(q, s) for q in questions[4:16] for s in (1, 2)]]
    alone = HFEngine(model)
    expected = [response for requests in rounds for response in alone.sample(requests, sampling)]

    def passage(response: Response) -> Passage:
        prompt = model.prompt_ids(next(q.question for q in questions if q.id == response.question_id))
        return Passage(response.question_id, (*prompt, *response.token_ids), len(prompt), (0, 1))

    passages = [passage(response) for response in expected]
    groups = [[passages[i] for i in part] for part in batches([len(p.ids) for p in passages], 600)]
    with two_nodes() as nodes, open_cluster(nodes.address, model, say=print) as cluster:
        engine = cluster.tools(Tools()).engine
        assert engine
        assert [response for requests in rounds for response in engine.sample(requests, sampling)] == expected
        found = cluster.extractor(REGIONS).many(groups)
        for one, other in zip(found, PooledExtractor(model, REGIONS).many(groups), strict=True):
            np.testing.assert_array_equal(one.dense(), other.dense())
