"""Takes a hit apart: the score as a sum over (query token, patch, query latent x page latent), with bias and error as rows.

For each token of the query, at the position of the page where it has its best match,

    <q, p> = sum over parts a of q and b of p of <q_a, p_b>      parts: one per active latent, the bias, the SAE's error

A part of a vector is what it adds by way of the head (`scope.pages.head`), all divisions held at their values, so the sum is
exact; the choice of the position is held too. The index's vectors are rounded, and what that adds is a row of its own.
"""

from typing import Any

import numpy as np
import torch

from scope.pages.explanation import BIAS, ERROR, Explanation
from scope.pages.head import check_sae, page_rows, query_rows
from scope.sae.base import SAE

LARGEST = 2_000_000
"""Pairs of latents that are kept; of more, the largest."""


@torch.no_grad()
def explain(
    index: Any, query: str, page: int | str, sae: SAE, query_sae: SAE | None = None, any_model: bool = False
) -> Explanation:
    """The score of a query with a page as a sum over pairs of latents.

    Args:
        index: an `Index`.
        query: a text.
        page: number or name of a page.
        sae: takes the page's side apart, and the query's unless `query_sae` does.
        query_sae: another SAE for the query's side; it may read another site.
        any_model: allow SAEs that were trained on other weights.

    Raises:
        PagesError: an empty query, an unknown page, or an SAE of a site that the vectors do not follow from linearly.
        DictionaryError: an SAE of another model or width, or a transcoder.
    """
    number, of_query = index.number(page), sae if query_sae is None else query_sae
    page_head = check_sae(index, sae, any_model)
    query_head = page_head if of_query is sae else check_sae(index, of_query, any_model)
    q = index.queries([query])[0].double()
    p = index.vectors(number).double()
    similarity = q @ p.T
    best = similarity.argmax(1)
    q_parts = query_head.parts(of_query, query_rows(index, query, of_query.site))
    used, row_of = best.unique(return_inverse=True)
    p_parts = page_head.parts(sae, page_rows(index, number, sae.site)[used])
    rows, rounding = [], []
    for token, position in enumerate(best.tolist()):
        q_latents, q_rows = q_parts.of(token)
        p_latents, p_rows = p_parts.of(int(row_of[token]))
        products = q_rows @ p_rows.T
        ends = torch.tensor([BIAS, ERROR])
        pairs = torch.cartesian_prod(torch.cat([q_latents, ends]), torch.cat([p_latents, ends]))
        place = torch.tensor([[token, position]]).expand(len(pairs), 2)
        rows.append(np.column_stack([torch.cat([place, pairs], 1).numpy(), products.flatten().numpy()]))
        exact = q_parts.vectors[token] @ p_parts.vectors[row_of[token]]
        rounding.append(float(similarity[token, position] - exact))
    table, dropped = np.concatenate(rows), 0.0
    if len(table) > LARGEST:
        order = np.argsort(-np.abs(table[:, 4]), kind="stable")
        dropped, table = float(table[order[LARGEST:], 4].sum()), table[np.sort(order[:LARGEST])]
    manifest = index.manifest
    ids = index.model.prepare_queries([query])["input_ids"][0].tolist()
    return Explanation(
        query=query,
        pieces=tuple(index.model.words.pieces(ids)),
        page=number,
        name=index.pages[number].name,
        site=sae.site,
        query_site=of_query.site,
        score=float(similarity.max(1).values.sum()),
        token=table[:, 0].astype(np.int64),
        position=table[:, 1].astype(np.int64),
        query_latent=table[:, 2].astype(np.int64),
        page_latent=table[:, 3].astype(np.int64),
        value=table[:, 4],
        rounding=np.array(rounding),
        smaller=dropped,
        grid=manifest.grid,
        first_patch=manifest.first_patch,
        page_pieces=manifest.pieces,
        index=index,
    )
