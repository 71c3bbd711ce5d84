"""What the ledger books for the answers of one request whose prompt the workers keep once."""

from cluster.ledger import WorkerBook
from scheduling.ids import WorkerId
from simulator.run_now import run_now
from simulator.testing import Ask, check_answers, check_empty, new_cluster, start

NUM_PROMPT, MAX_TOKENS, NUM_CHOICES = 20, 8, 4


def test_each_of_several_answers_is_booked_in_full_though_their_prompt_is_kept_once() -> None:
    ask = Ask(tuple(range(NUM_PROMPT)), MAX_TOKENS, NUM_CHOICES, 0.0, None, None, num_end_ids=0)
    cluster = new_cluster(1, "default", 64, short_sighted=False, num_decode=1)
    pool = cluster.worker_by_id[WorkerId("decode-0")].core.pool
    most_booked = most_used = 0

    def look() -> None:
        nonlocal most_booked, most_used
        books: tuple[WorkerBook, ...] = run_now(cluster.ledger.snapshot()).workers
        (book,) = (book for book in books if book.worker.worker_id == "decode-0")
        most_booked = max(most_booked, book.num_reserved)
        most_used = max(most_used, pool.num_blocks - pool.num_free_blocks)

    start(cluster, 0, ask)
    for millisecond in range(500):
        cluster.at(millisecond / 1000, look)
    cluster.run()
    check_answers(cluster, [ask])
    check_empty(cluster)
    # Blocks of four tokens: five for the prompt, two for the answer, of each of four answers.
    assert most_booked == NUM_CHOICES * 7
    # The full blocks that are read alone are there once: all but the last of the prompt.
    assert most_used <= 5 + NUM_CHOICES * 3
    assert most_used < most_booked
