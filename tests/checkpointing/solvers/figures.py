"""Published figures of schedules for chains of equal steps; a total counts every forward, those that save among them."""

#: (l, s, forwards that save nothing, total of Revolve, total of mixed)
CLASSIC = [
    (3, 1, 3, 6, 5), (4, 2, 4, 8, 6), (5, 2, 6, 11, 8), (6, 3, 7, 13, 9), (10, 1, 45, 55, 54), (10, 2, 20, 30, 26), (10, 3, 15, 25, 19),
    (10, 4, 14, 24, 17), (10, 9, 9, 19, 10), (20, 3, 45, 65, 55), (20, 5, 33, 53, 38), (32, 4, 75, 107, 87), (50, 3, 180, 230, 209),
    (50, 5, 122, 172, 138), (56, 5, 140, 196, 161), (100, 2, 845, 945, 931), (100, 3, 490, 590, 554), (100, 5, 316, 416, 352),
    (100, 10, 222, 322, 237), (100, 20, 178, 278, 184), (250, 25, 473, 723, 486), (250, 50, 448, 698, 454),
]  # fmt: skip

#: (n, states in RAM, time to write and to read, with disk, with RAM alone)
ONE_LEVEL = [
    (10, 2, 1, 28, 30), (20, 2, 1, 61, 85), (50, 3, 2, 175, 230), (100, 3, 5, 425, 590), (100, 5, 5, 380, 416), (200, 5, 10, 863, 990),
]  # fmt: skip

#: (n, states in RAM, on disk, time to write and to read, time)
TWO_LEVELS = [(10, 1, 2, 1, 32), (20, 2, 3, 2, 70), (50, 3, 5, 5, 200), (100, 3, 10, 5, 425)]
