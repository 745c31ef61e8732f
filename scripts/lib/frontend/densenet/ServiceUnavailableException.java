package densenet;

/** What TorchServe throws where a queue is full, with that as its message: its own speaks of workers to be added. */
public final class ServiceUnavailableException extends org.pytorch.serve.http.ServiceUnavailableException {
    static final String BUSY = "as many requests wait as may; try again in a second";

    private static final long serialVersionUID = 1L;

    /** As TorchServe's. */
    public ServiceUnavailableException(String message) {
        super(BUSY);
    }
}
