package densenet;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.HttpResponseStatus;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.pytorch.serve.archive.model.ModelVersionNotFoundException;
import org.pytorch.serve.job.RestJob;
import org.pytorch.serve.util.messages.RequestInput;
import org.pytorch.serve.util.messages.WorkerCommands;
import org.pytorch.serve.wlm.Model;
import org.pytorch.serve.wlm.ModelManager;

/**
 * A request that its worker may put off (handler/later.py): the answer then names a ticket, a file. The request waits
 * here, without a worker, until there is something in the file, and goes to the front of the queue with the ticket.
 */
public final class DeferredJob extends RestJob {
    /** Of a request: that it may be put off, or its ticket's name; of an answer: a ticket's path, and seconds. */
    static final String LATER = "X-Densenet-Later";

    private static final String MAY = "may";

    private static final int POLL_MILLISECONDS = 50;

    private static final ScheduledExecutorService CLOCK =
            Executors.newSingleThreadScheduledExecutor(
                    task -> {
                        Thread thread = new Thread(task, "deferred");
                        thread.setDaemon(true);
                        return thread;
                    });

    /** The file in which the result will be. */
    private Path ticket;

    /** When the worker is asked in any case: it died, maybe. Monotonic nanoseconds. */
    private long deadline;

    /** As RestJob's. A client's own header is dropped. */
    public DeferredJob(
            ChannelHandlerContext context, String model, String version, WorkerCommands command, RequestInput input) {
        super(context, model, version, command, input);
        input.getHeaders().keySet().removeIf(LATER::equalsIgnoreCase);
        input.updateHeaders(LATER, MAY);
    }

    @Override
    public void response(
            byte[] body, CharSequence type, int status, String phrase, Map<String, String> responseHeaders) {
        String later = responseHeaders == null ? null : responseHeaders.get(LATER);
        if (later == null) {
            super.response(body, type, status, phrase, responseHeaders);
            return;
        }
        int space = later.lastIndexOf(' ');
        ticket = Path.of(later.substring(0, space));
        deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Long.parseLong(later.substring(space + 1)));
        getPayload().updateHeaders(LATER, ticket.getFileName().toString());
        Bodies.add(Bodies.size(getPayload())); // in no queue and with no worker, but in memory
        lookLater();
    }

    private void lookLater() {
        CLOCK.schedule(this::look, POLL_MILLISECONDS, TimeUnit.MILLISECONDS);
    }

    private void look() {
        try {
            if (!isOpen()) {
                Files.deleteIfExists(ticket); // nobody waits for it: the worker leaves off
            } else if (System.nanoTime() < deadline && Files.exists(ticket) && Files.size(ticket) == 0) {
                lookLater();
                return;
            } else {
                handOver();
            }
        } catch (IOException | IllegalStateException error) { // a full queue
            lookLater();
            return;
        } catch (ModelVersionNotFoundException error) {
            sendError(HttpResponseStatus.SERVICE_UNAVAILABLE.code(), "the model was removed; try again in a second");
        }
        Bodies.give(Bodies.size(getPayload()));
    }

    private void handOver() throws ModelVersionNotFoundException {
        Model model = ModelManager.getInstance().getModel(getModelName(), getModelVersion());
        if (model == null) {
            throw new ModelVersionNotFoundException("it was removed");
        }
        model.addFirst(this);
    }
}
