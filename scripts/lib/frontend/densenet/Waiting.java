package densenet;

import io.netty.handler.codec.http.HttpResponseStatus;
import java.lang.reflect.Field;
import java.util.Deque;
import java.util.Map;
import java.util.WeakHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.pytorch.serve.job.Job;
import org.pytorch.serve.wlm.Model;
import org.pytorch.serve.wlm.ModelManager;
import org.pytorch.serve.wlm.ModelVersionedRefs;
import org.pytorch.serve.wlm.WorkerState;

/**
 * The requests that wait while a model has no READY worker: TorchServe itself leaves them without an answer until it
 * has one again, for ever if need be.
 */
final class Waiting implements Runnable {
    /** Seconds for which a request waits for a worker: a killed one is back by then. */
    static final int PATIENCE_SECONDS = 10;

    /** Header of a client that waits for so many seconds only; the front door, which may have another host. */
    static final String PATIENCE = "X-Densenet-Patience";

    private static final int POLL_MILLISECONDS = 200;

    private static final String MESSAGE = "no worker is READY; try again in a second";

    /** When each model was last seen with a READY worker, or first without. Monotonic nanoseconds. */
    private final Map<Model, Long> ready = new WeakHashMap<>();

    private final Field queues;

    private Waiting() throws NoSuchFieldException {
        queues = Model.class.getDeclaredField("jobsDb");
        queues.setAccessible(true);
    }

    /** Looks after them from now on. */
    static void start() {
        try {
            Executors.newSingleThreadScheduledExecutor(
                            task -> {
                                Thread thread = new Thread(task, "waiting");
                                thread.setDaemon(true);
                                return thread;
                            })
                    .scheduleWithFixedDelay(new Waiting(), 0, POLL_MILLISECONDS, TimeUnit.MILLISECONDS);
        } catch (NoSuchFieldException error) {
            throw new IllegalStateException("this isn't TorchServe 0.12", error);
        }
    }

    @Override
    public void run() {
        for (Map.Entry<String, ModelVersionedRefs> versions : ModelManager.getInstance().getAllModels()) {
            for (Map.Entry<String, Model> version : versions.getValue().getAllVersions()) {
                try {
                    lookAfter(version.getValue());
                } catch (ReflectiveOperationException | RuntimeException error) { // a list of workers that just changed
                    continue; // in a moment, again
                }
            }
        }
    }

    private void lookAfter(Model model) throws ReflectiveOperationException {
        long now = System.nanoTime();
        boolean served =
                ModelManager.getInstance().getWorkers(model.getModelVersionName()).stream()
                        .anyMatch(worker -> worker.getState() == WorkerState.WORKER_MODEL_LOADED);
        if (served) {
            ready.put(model, now);
            return;
        }
        long seconds = TimeUnit.NANOSECONDS.toSeconds(now - ready.computeIfAbsent(model, key -> now));
        Deque<Job> queue = queue(model);
        if (queue != null) {
            queue.removeIf(job -> seconds >= patience(job) && refused(job));
        }
    }

    @SuppressWarnings("unchecked")
    private Deque<Job> queue(Model model) throws ReflectiveOperationException {
        return (Deque<Job>) ((Map<String, ?>) queues.get(model)).get(Model.DEFAULT_DATA_QUEUE);
    }

    private static int patience(Job job) {
        for (Map.Entry<String, String> header : job.getPayload().getHeaders().entrySet()) {
            if (PATIENCE.equalsIgnoreCase(header.getKey())) {
                try {
                    return Math.min(PATIENCE_SECONDS, Integer.parseInt(header.getValue()));
                } catch (NumberFormatException error) {
                    return PATIENCE_SECONDS;
                }
            }
        }
        return PATIENCE_SECONDS;
    }

    private static boolean refused(Job job) {
        job.sendError(HttpResponseStatus.SERVICE_UNAVAILABLE.code(), MESSAGE);
        return true;
    }
}
