"""Real media files: the one place that knows PyAV and FFmpeg.

Time. Everything is measured on the *video's clock*: 0 s is the moment the first decodable video frame is shown. The
sound is laid on that clock by the two streams' own timestamps (edit lists, encoder priming and negative timestamps are
applied by FFmpeg's demuxers), so a stream that starts late is preceded by silence and one that starts early loses what
came before the picture. A picture is on show from its timestamp until the next one's: an output frame is the picture on
show in the middle of its own time, which is right for any frame rate, constant or variable.

Safety. A file is opened through a Python file object with no protocol and no playlist demuxer allowed, so that a text
that calls itself a video cannot make FFmpeg read another file or the network, and no file name has a special meaning.
Decoding uses slice threads at most, and one thread a file: parallelism is over files (see `mgct.data.prepare`).
"""

from mgct.data.media.error import MediaError, Reason
from mgct.data.media.facts import MediaFacts, probe
from mgct.data.media.files import MEDIA_SUFFIXES, SOUND_SUFFIXES, find_files, one_line
from mgct.data.media.mp4 import AAC_RATES_HZ, aac_rate_hz, write_mp4
from mgct.data.media.pictures import Fit, VideoReader, display_transform, scaled_size, to_square
from mgct.data.media.processes import for_each_file
from mgct.data.media.sound import AudioReader, check_rate_hz, resample, to_int16
from mgct.data.media.track import decoder_version
from mgct.data.media.windows import Window, WindowReader, read_clip, read_sound, read_video

__all__ = [
    "AAC_RATES_HZ",
    "MEDIA_SUFFIXES",
    "SOUND_SUFFIXES",
    "AudioReader",
    "Fit",
    "MediaError",
    "MediaFacts",
    "Reason",
    "VideoReader",
    "Window",
    "WindowReader",
    "aac_rate_hz",
    "check_rate_hz",
    "decoder_version",
    "display_transform",
    "find_files",
    "for_each_file",
    "one_line",
    "probe",
    "read_clip",
    "read_sound",
    "read_video",
    "resample",
    "scaled_size",
    "to_int16",
    "to_square",
    "write_mp4",
]
