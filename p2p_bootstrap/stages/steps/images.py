"""``unpack_images``: the files of a container image, in a folder.

What was unpacked is noted beside the target with the manifest's digest, so that a second boot asks for the
manifest only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from p2p_bootstrap.stages import oci
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import UnpackImage
from p2p_network.core.errors import BootError


@dataclass(frozen=True, slots=True)
class UnpackImageFiles:
    """``unpack_images``."""

    spec: UnpackImage

    def describe(self) -> str:
        """See `Action`."""
        return f"unpack the image {self.spec.source} into {self.spec.target}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        spec = self.spec
        registry = oci.Registry(oci.parse_reference(spec.source))
        manifest = registry.manifest(spec.platform or f"linux/{context.facts.arch}")
        digests = [str(layer.get("digest", "")) for layer in manifest.get("layers", ())]
        if not digests:
            raise BootError(f"{spec.source}: the image has no layers", hint="is it an image?")
        mark = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        note = f"{spec.target.rstrip('/')}/.kairos-p2p-image"
        if context.root.text(note).strip() == mark:
            return
        context.root.make_folder(spec.target)
        for digest in digests:
            oci.apply_layer(registry.layer(digest), context.root.path(spec.target))
        context.root.write(note, f"{mark}\n".encode(), 0o644)
