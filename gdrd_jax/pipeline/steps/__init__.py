"""The steps in order: faces -> views -> targets of both teachers -> stage gen -> stage dis -> report."""

from gdrd_jax.pipeline.steps import dis, discriminative, faces, gen, generative, report, sr_teacher, views

STEPS = (
    faces.STEP, views.VIEWS, views.SMALL_FACES, discriminative.STEP, sr_teacher.STEP, generative.STEP, gen.STEP,
    dis.STEP, report.STEP,
)  # fmt: skip
