package densenet;

import io.netty.handler.codec.http.HttpResponseStatus;
import java.util.IdentityHashMap;
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
 * The requests that wait for a worker. Those that nobody waits for any more are dropped. Those that wait for too long,
 * for a READY worker or in a long queue, are refused: TorchServe itself leaves them without an answer, for ever if need
 * be.
 */
final class Waiting implements Runnable {
    /** Seconds for which a request waits for a READY worker: a killed one is back by then. */
    static final int PATIENCE_SECONDS = 10;

    /** Seconds for which a request waits for its turn, each time that it is put into the queue. */
    static final int QUEUE_SECONDS = 10;

    /** Header of a client that waits for so many seconds only; the front door, which may have another host. */
    static final String PATIENCE = "X-Densenet-Patience";

    private static final int POLL_MILLISECONDS = 200;

    static final String NOT_READY = "no worker is READY; try again in a second";

    /** What a client that is gone would be told; for the access log and the counters. */
    private static final int CLIENT_GONE = 499;

    /** Seconds without a body in memory after which Java gives back what a burst of large ones took of its heap. */
    private static final int QUIET_SECONDS = 10;

    /** Since when no body is in memory. Monotonic nanoseconds. */
    private long quiet = System.nanoTime();

    /** The size of the heap after it was last given back; where it is no larger there is nothing to give. */
    private long heap = Runtime.getRuntime().totalMemory();

    /** When each model was last seen with a READY worker, or first without. Monotonic nanoseconds. */
    private final Map<Model, Long> ready = new WeakHashMap<>();

    /** When each request was first seen in its queue, by the look before. Monotonic nanoseconds. */
    private Map<Job, Long> seen = new IdentityHashMap<>();

    /** Looks after them from now on. */
    static void start() {
        Executors.newSingleThreadScheduledExecutor(
                        task -> {
                            Thread thread = new Thread(task, "waiting");
                            thread.setDaemon(true);
                            return thread;
                        })
                .scheduleWithFixedDelay(new Waiting(), 0, POLL_MILLISECONDS, TimeUnit.MILLISECONDS);
    }

    @Override
    public void run() {
        try {
            giveBack(System.nanoTime());
        } catch (RuntimeException error) { // a list of workers that just changed
            quiet = System.nanoTime();
        }
        Map<Job, Long> before = seen;
        seen = new IdentityHashMap<>();
        for (Map.Entry<String, ModelVersionedRefs> versions : ModelManager.getInstance().getAllModels()) {
            for (Map.Entry<String, Model> version : versions.getValue().getAllVersions()) {
                try {
                    lookAfter(version.getValue(), before);
                } catch (RuntimeException error) { // a list of workers that just changed
                    continue; // in a moment, again
                }
            }
        }
    }

    /** The collector makes the heap smaller only when it looks at all of it, which it may not do for days. */
    private void giveBack(long now) {
        if (!Bodies.isEmpty()) {
            quiet = now;
        } else if (now - quiet > TimeUnit.SECONDS.toNanos(QUIET_SECONDS) && Runtime.getRuntime().totalMemory() > heap) {
            System.gc();
            heap = Runtime.getRuntime().totalMemory();
        }
    }

    private void lookAfter(Model model, Map<Job, Long> before) {
        long now = System.nanoTime();
        boolean served =
                ModelManager.getInstance().getWorkers(model.getModelVersionName()).stream()
                        .anyMatch(worker -> worker.getState() == WorkerState.WORKER_MODEL_LOADED);
        if (served) {
            ready.put(model, now);
        }
        long unserved = now - ready.computeIfAbsent(model, key -> now);
        for (Job job : Bodies.queue(model)) {
            long waited = now - before.getOrDefault(job, now);
            if (!job.isOpen()) {
                drop(model, job, CLIENT_GONE, "nobody waits for the answer");
            } else if (!served && unserved >= TimeUnit.SECONDS.toNanos(patience(job))) {
                drop(model, job, HttpResponseStatus.SERVICE_UNAVAILABLE.code(), NOT_READY);
            } else if (served && waited >= TimeUnit.SECONDS.toNanos(QUEUE_SECONDS)) {
                drop(model, job, HttpResponseStatus.SERVICE_UNAVAILABLE.code(), ServiceUnavailableException.AGE);
            } else {
                seen.put(job, now - waited);
            }
        }
    }

    /** Answers a request, unless a worker has just taken it. */
    private static void drop(Model model, Job job, int status, String message) {
        if (Bodies.queue(model).remove(job)) {
            job.sendError(status, message);
        }
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
}
