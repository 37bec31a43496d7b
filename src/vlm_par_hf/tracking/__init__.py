"""People of a video file: found, followed, and answered for as people, not as frames.

from vlm_par_hf.tracking import track

report = track("street.mp4", "people.jsonl", detector="PekingU/rtdetr_v2_r18vd", model=folder)
"""

from .cvat import write_cvat
from .detection import Detector
from .drawing import draw_video
from .running import track
from .sheet import contact_sheet
from .tracker import ByteTracker, Tracker


__all__ = ["ByteTracker", "Detector", "Tracker", "contact_sheet", "draw_video", "track", "write_cvat"]
