"""The training objective: InfoNCE + α·CSA + β·USA (CUSA, arXiv 2403.05261, eq. 9)."""

from __future__ import annotations

from torch import Tensor

from stores.parameters import Loss
from train.losses import cosine_similarity, csa_loss, info_nce, mixed_targets, usa_loss
from train.model import AlignedModel, Embeddings


def objective(
    embeddings: Embeddings, teachers: tuple[Tensor, Tensor] | None, groups: Tensor, model: AlignedModel, loss: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and its parts before weighting; parts of weight zero are not computed.

    Args:
        embeddings: what the model makes of the batch, (N, D) each.
        teachers: the image and the text teacher's features, (N, Di) and (N, Dt); not needed where α and β are zero.
        groups: (N,) sample rows; pairs of one image share their InfoNCE targets.
        model: gives the temperatures and the student's similarity.
        loss: weights and settings.
    """
    tau = model.temperatures
    similarity = model.student.similarity(embeddings.image, embeddings.text)
    parts = {"InfoNCE": info_nce(similarity, tau.contrast(), groups, loss.reduction)}
    total = parts["InfoNCE"]
    if teachers is None:
        return total, parts
    image_teacher, text_teacher = (cosine_similarity(features, features) for features in teachers)
    targets = mixed_targets(image_teacher, text_teacher, loss.teacher_temperature, loss.mix)
    if loss.alpha:
        parts["CSA"] = csa_loss(similarity, *targets, tau.cross())
        total = total + loss.alpha * parts["CSA"]
    if loss.beta:
        images = cosine_similarity(embeddings.uni_image, embeddings.uni_image)
        texts = cosine_similarity(embeddings.uni_text, embeddings.uni_text)
        parts["USA"] = usa_loss(images, texts, *targets, tau.image(), tau.text())
        total = total + loss.beta * parts["USA"]
    return total, parts
