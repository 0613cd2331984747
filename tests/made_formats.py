"""A tiny set of trajectories in every format, always of the same rows; and ways to spoil one."""

import io
import json

import films
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

LENGTHS = (7, 5, 9)
ROWS = sum(LENGTHS)


def rows(dtype="u1"):
    """Rows that can be recognised: pictures and numbers hold the row's number."""
    number = np.arange(ROWS)
    pictures = np.broadcast_to(number[:, None, None, None] * 10, (ROWS, 16, 20, 3)).astype(dtype)
    return {
        "img": pictures,
        "action": np.stack([number + 0.25, number + 0.5], 1).astype("f4"),
        "state": np.repeat(number[:, None], 3, 1).astype("f4"),
    }


def plural(arrays):
    return {"observations": arrays["img"], "actions": arrays["action"], "qpos": arrays["state"]}


def ends(*, last=True):
    flags = np.zeros(ROWS)
    flags[np.cumsum(LENGTHS)[: None if last else -1] - 1] = 1
    return flags


def make_hdf5(folder):
    with h5py.File(folder / "rows.h5", "w") as file:
        file["ep_len"], file["ep_offset"] = LENGTHS, np.cumsum((0, *LENGTHS[:-1]))
        for name, values in rows().items():
            file[name] = values
    return folder / "rows.h5"


def make_d4rl(folder):
    with h5py.File(folder / "d4rl.hdf5", "w") as file:
        for name, values in plural(rows()).items():
            file[name] = values
        file["timeouts"], file["terminals"] = ends(last=False), np.zeros(ROWS)
        file["metadata/algorithm"] = np.zeros(3)
    return folder / "d4rl.hdf5"


def make_ogbench(folder):
    np.savez_compressed(folder / "ogbench.npz", **plural(rows()), terminals=ends())
    return folder / "ogbench.npz"


def make_npz(folder):
    np.savez(
        folder / "rows.npz",
        **rows(),
        episode_ends=np.cumsum(LENGTHS),
        task=np.array(["a", "b", "c"]),
    )
    return folder / "rows.npz"


def make_npz_folder(folder):
    (folder / "episodes").mkdir()
    for e, (start, stop) in enumerate(
        zip(np.cumsum(LENGTHS) - LENGTHS, np.cumsum(LENGTHS), strict=True)
    ):
        np.savez_compressed(
            folder / f"episodes/{e:03d}.npz", **{k: v[start:stop] for k, v in rows().items()}
        )
    return folder / "episodes"


def make_zarr(folder, *, without=()):
    """Version 2 by hand, in chunks of 8 rows, floats as diffusion policy stores them."""
    root = folder / "set.zarr"
    for group in ("", "data", "meta"):
        (root / group).mkdir()
        (root / group / ".zgroup").write_text('{"zarr_format": 2}')
    arrays = {f"data/{name}": values for name, values in rows("f4").items()}
    for name, values in {**arrays, "meta/episode_ends": np.cumsum(LENGTHS)}.items():
        (root / name).mkdir()
        chunk = (8, *values.shape[1:])
        about = {
            "shape": values.shape,
            "chunks": chunk,
            "dtype": values.dtype.str,
            "zarr_format": 2,
        }
        about |= {"order": "C", "compressor": None, "filters": None, "fill_value": 0}
        (root / name / ".zarray").write_text(json.dumps(about))
        for c in range(-(-len(values) // 8)):
            part = np.zeros(chunk, values.dtype)
            part[: len(values[8 * c : 8 * c + 8])] = values[8 * c : 8 * c + 8]
            if (name, c) not in without:
                (root / name / ".".join([str(c), *"0" * (values.ndim - 1)])).write_bytes(
                    part.tobytes()
                )
    return root


def make_minari(folder, *, actions=None, space=None):
    """One observation more than actions, in a dict."""
    (folder / "set/data").mkdir(parents=True)
    with h5py.File(folder / "set/data/main_data.hdf5", "w") as file:
        for e, start in enumerate(np.cumsum(LENGTHS) - LENGTHS):
            group, stop = file.create_group(f"episode_{e}"), start + LENGTHS[e]
            group["observations/image"] = rows()["img"][start:stop]
            group["observations/state"] = rows()["state"][start:stop]
            group["actions"] = (rows()["action"] if actions is None else actions)[start : stop - 1]
            group["infos"] = ["{}"] * LENGTHS[e]
    (folder / "set/data/metadata.json").write_text(
        json.dumps({"action_space": json.dumps(space or {"type": "Box"})})
    )
    return folder / "set"


def make_dino_wm(folder, *, films_too=False):
    root, longest = folder / "dino", max(LENGTHS)
    (root / "obses").mkdir(parents=True)
    tables = {
        "states": np.zeros((3, longest, 3), "f4"),
        "rel_actions": np.zeros((3, longest, 2), "f4"),
    }
    for e, start in enumerate(np.cumsum(LENGTHS) - LENGTHS):
        part = slice(start, start + LENGTHS[e])
        tables["states"][e, : LENGTHS[e]] = rows()["state"][part]
        tables["rel_actions"][e, : LENGTHS[e]] = rows()["action"][part]
        if films_too:
            films.write(root / f"obses/episode_{e:03d}.mp4", films.frames(ROWS)[part], fps=30)
        else:
            torch.save(
                torch.from_numpy(rows()["img"][part].copy()), root / f"obses/episode_{e:03d}.pth"
            )
    for name, table in tables.items():
        torch.save(torch.from_numpy(table), root / f"{name}.pth")
    return root


def make_lerobot(folder, version="v2.1"):
    """Two cameras: a video whose frames repeat their episode's row number, and images inside the
    parquet."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    root = folder / version
    (root / "meta").mkdir(parents=True)
    third = version.startswith("v3")
    video = "observation.images.front"
    features = {
        video: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channel"]},
        "observation.images.wrist": {
            "dtype": "image",
            "shape": [3, 16, 20],
            "names": ["c", "h", "w"],
        },
        "observation.state": {
            "dtype": "float32",
            "shape": [3],
            "names": {"motors": ["arm_x", "arm_y", "grip"]},
        },
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "task": {"dtype": "string", "shape": [1], "names": None},
        "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    info = {
        "codebase_version": version,
        "fps": 10,
        "chunks_size": 1000,
        "total_frames": ROWS,
        "features": features,
    }
    file = (
        "c{chunk_index:03d}/f{file_index:03d}" if third else "c{episode_chunk}/{episode_index:06d}"
    )
    info |= {"data_path": f"data/{file}.parquet", "video_path": f"videos/{{video_key}}/{file}.mp4"}
    (root / "meta/info.json").write_text(json.dumps(info))

    def png(picture):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    starts = np.cumsum(LENGTHS) - LENGTHS
    tables = [
        pa.table({
            "observation.images.wrist": [png(p) for p in rows()["img"][start:stop]],
            "observation.state": rows()["state"][start:stop].tolist(),
            "action": pa.array(rows()["action"][start:stop].tolist(), pa.list_(pa.float32(), 2)),
            "task": ["push"] * (stop - start),
            "episode_index": [e] * (stop - start),
        })
        for e, (start, stop) in enumerate(zip(starts, np.cumsum(LENGTHS), strict=True))
    ]  # fmt: skip
    pictures = [
        films.frames(ROWS)[start : start + n] for start, n in zip(starts, LENGTHS, strict=True)
    ]

    def place(kind, **fill):
        path = root / info[f"{kind}_path"].format(**fill)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    if not third:
        lines = [
            json.dumps({"episode_index": e, "tasks": [], "length": n})
            for e, n in enumerate(LENGTHS)
        ]
        (root / "meta/episodes.jsonl").write_text("\n".join(lines))
        for e, table in enumerate(tables):
            pq.write_table(table, place("data", episode_chunk=0, episode_index=e))
            films.write(
                place("video", episode_chunk=0, episode_index=e, video_key=video), pictures[e]
            )
        return root
    # The first two episodes share a file, the third has its own.
    where = [(0, 0), (0, 0), (0, 1)]
    pq.write_table(
        pa.concat_tables(tables[:2]), place("data", chunk_index=0, file_index=0), row_group_size=4
    )
    pq.write_table(tables[2], place("data", chunk_index=0, file_index=1))
    films.write(
        place("video", chunk_index=0, file_index=0, video_key=video), np.concatenate(pictures[:2])
    )
    films.write(place("video", chunk_index=0, file_index=1, video_key=video), pictures[2])
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    table = {
        "episode_index": [0, 1, 2],
        "length": LENGTHS,
        "dataset_from_index": starts,
        "stats/x": [0, 0, 0],
    }
    for part in ("data", f"videos/{video}"):
        table |= {
            f"{part}/chunk_index": [c for c, _ in where],
            f"{part}/file_index": [f for _, f in where],
        }
    table[f"videos/{video}/from_timestamp"] = [0.0, LENGTHS[0] / 10, 0.0]
    pq.write_table(pa.table(table), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def make_lerobot_3(folder):
    return make_lerobot(folder, "v3.0")


MAKERS = {
    "hdf5": make_hdf5,
    "d4rl": make_d4rl,
    "ogbench": make_ogbench,
    "npz": make_npz,
    "npz_folder": make_npz_folder,
    "zarr": make_zarr,
    "minari": make_minari,
    "dino_wm": make_dino_wm,
    "lerobot": make_lerobot,
    "lerobot_3": make_lerobot_3,
}


def spoil_nan(folder):
    arrays = rows()
    arrays["action"][9] = np.nan
    np.savez(folder / "rows.npz", **arrays, episode_ends=np.cumsum(LENGTHS))
    return folder / "rows.npz"


def spoil_missing(folder):
    arrays = rows()
    del arrays["action"]
    np.savez(folder / "rows.npz", **arrays, episode_ends=np.cumsum(LENGTHS))
    return folder / "rows.npz"


def spoil_short(folder):
    path = make_hdf5(folder)
    with h5py.File(path, "a") as file:
        file["ep_seed"] = np.zeros(len(LENGTHS))  # of episodes: no fault
        del file["action"]
        file["action"] = rows()["action"][:-2]
    return path


def spoil_lengths(folder):
    path = make_minari(folder)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = np.zeros((2, 2))
    return path


def spoil_cut(maker):
    def spoil(folder):
        path = maker(folder)
        films.cut(path, 0.6)
        return path

    return spoil


def spoil_pickle(folder):
    path = make_dino_wm(folder)
    torch.save({"f": print}, path / "states.pth")
    return path


def spoil_film(folder):
    path = make_lerobot(folder)
    next(path.rglob("000001.mp4")).unlink()
    return path


def spoil_parquet(folder):
    path = make_lerobot(folder)
    films.cut(next(path.rglob("000002.parquet")), 0.6)
    return path


def spoil_info(folder):
    path = make_lerobot(folder)
    (path / "meta/info.json").write_text('{"codebase_version": "v2.1"')
    return path


def spoil_zarr_chunk(folder):
    pytest.importorskip("zarr")
    path = make_zarr(folder)
    films.cut(path / "data/img/1.0.0.0", 0.5)
    return path


def spoil_meta(folder):
    path = make_lerobot(folder)
    (path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 7}\n')
    return path


def spoil_chunk(folder):
    pytest.importorskip("zarr")
    return make_zarr(folder, without=[("data/img", 1)])
