from gdrd_jax.utils.texts import counted


def test_one_of_a_kind_is_singular():
    assert [counted(n, "face") for n in (0, 1, 2)] == ["0 faces", "1 face", "2 faces"]
    assert counted(1, "person", "people") == "1 person" and counted(3, "person", "people") == "3 people"
