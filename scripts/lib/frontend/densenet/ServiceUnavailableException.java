package densenet;

import java.util.stream.Stream;

/** What TorchServe throws where a queue is full: its own message speaks of workers to be added. */
public final class ServiceUnavailableException extends org.pytorch.serve.http.ServiceUnavailableException {
    /** The messages of a server that has too much to do: by their number, their bytes, their age. */
    static final String REQUESTS = "as many requests wait as may; try again in a second";

    static final String BYTES = "the requests that wait fill the memory that they may have; try again in a second";

    static final String AGE = "no worker was free for " + Waiting.QUEUE_SECONDS + " s; try again in a second";

    private static final long serialVersionUID = 1L;

    /** As TorchServe's, whose only message is about a full queue. */
    public ServiceUnavailableException(String message) {
        super(message.startsWith("Model ") ? REQUESTS : message);
    }

    /** Whether an answer has one of these messages. */
    static boolean saysBusy(String answer) {
        return Stream.of(REQUESTS, BYTES, AGE).anyMatch(answer::contains);
    }
}
