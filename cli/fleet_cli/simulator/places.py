"""Where devices stand and drive: a few places with a climate, and the roads between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# name, latitude, longitude, mean temperature (°C), half the difference of day and night (°C)
_PLACES = (
    ("Bratislava", 48.1486, 17.1077, 19.0, 6.0),
    ("Vienna", 48.2082, 16.3738, 19.0, 6.0),
    ("Prague", 50.0755, 14.4378, 17.0, 6.0),
    ("Munich", 48.1351, 11.5820, 17.0, 6.0),
    ("Hamburg", 53.5511, 9.9937, 15.0, 4.5),
    ("Milan", 45.4642, 9.1900, 22.0, 5.5),
    ("Madrid", 40.4168, -3.7038, 25.0, 8.0),
    ("Seville", 37.3891, -5.9845, 28.0, 8.5),
    ("Warsaw", 52.2297, 21.0122, 17.0, 6.0),
    ("Oslo", 59.9139, 10.7522, 13.0, 5.0),
)
COUNT = len(_PLACES)
LATITUDE, LONGITUDE, MEAN_C, SWING_C = (np.array([place[column] for place in _PLACES]) for column in (1, 2, 3, 4))

_ROUTES = np.array([(0, 1), (1, 3), (2, 3), (2, 0), (4, 2), (5, 3), (6, 7), (8, 2), (9, 4), (8, 0)])
ROUTES = len(_ROUTES)
_KM_PER_DEGREE = 111.2


def ambient_c(mean_c: Floats, swing_c: Floats, longitude: Floats, world_s: Floats) -> Floats:
    """Outside temperature by local solar time: warmest at 15:00, coldest at 3:00. world_s 0 is midnight UTC."""
    local_hour = world_s / 3600.0 + longitude / 15.0
    return np.asarray(mean_c + swing_c * np.cos((local_hour - 15.0) * (2.0 * np.pi / 24.0)))


class Roads:
    """n trucks, each on a route of its own, to and fro at its own speed. Equirectangular: near enough at this scale."""

    def __init__(self, generator: np.random.Generator, trucks: int) -> None:
        route = _ROUTES[generator.integers(0, ROUTES, trucks)]
        swap = generator.random(trucks) < 0.5
        self._origin = np.where(swap, route[:, 1], route[:, 0])
        self._goal = np.where(swap, route[:, 0], route[:, 1])
        narrowing = np.cos(np.radians((LATITUDE[self._origin] + LATITUDE[self._goal]) / 2.0))
        north = LATITUDE[self._goal] - LATITUDE[self._origin]
        east = (LONGITUDE[self._goal] - LONGITUDE[self._origin]) * narrowing
        self._length_km = np.hypot(north, east) * _KM_PER_DEGREE
        self._km_per_s = generator.uniform(55.0, 85.0, trucks) / 3600.0
        self._started_km = generator.uniform(0.0, 2.0, trucks) * self._length_km
        self._bend = generator.uniform(-0.25, 0.25, trucks)

    def along(self, truck: Ints, world_s: Floats) -> Floats:
        """How far along its route, 0 (origin) to 1 (goal) and back."""
        travelled = (self._started_km[truck] + self._km_per_s[truck] * world_s) / self._length_km[truck]
        return np.asarray(1.0 - np.abs(1.0 - np.mod(travelled, 2.0)))

    def position(self, truck: Ints, along: Floats) -> tuple[Floats, Floats]:
        """(latitude, longitude) on a gently bent road."""
        origin, goal = self._origin[truck], self._goal[truck]
        latitude = LATITUDE[origin] + (LATITUDE[goal] - LATITUDE[origin]) * along
        longitude = LONGITUDE[origin] + (LONGITUDE[goal] - LONGITUDE[origin]) * along
        return np.asarray(latitude + self._bend[truck] * np.sin(np.pi * along)), np.asarray(longitude)

    def climate(self, truck: Ints, along: Floats) -> tuple[Floats, Floats]:
        """(mean, swing) in °C at that point of the road."""
        origin, goal = self._origin[truck], self._goal[truck]
        return (
            np.asarray(MEAN_C[origin] + (MEAN_C[goal] - MEAN_C[origin]) * along),
            np.asarray(SWING_C[origin] + (SWING_C[goal] - SWING_C[origin]) * along),
        )
