package densenet;

/** The error of a request whose worker died, maybe of it: its name is the type in the answer. */
final class WorkerDied extends RuntimeException {
    private static final long serialVersionUID = 1L;

    WorkerDied() {
        super("the worker died with this request; send it once more in a second, and not again if that happens again");
    }
}
