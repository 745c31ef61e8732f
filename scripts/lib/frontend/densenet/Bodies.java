package densenet;

import io.netty.util.internal.PlatformDependent;
import java.lang.reflect.Field;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import org.pytorch.serve.job.Job;
import org.pytorch.serve.util.ConfigManager;
import org.pytorch.serve.util.messages.BaseModelRequest;
import org.pytorch.serve.util.messages.InputParameter;
import org.pytorch.serve.util.messages.ModelInferenceRequest;
import org.pytorch.serve.util.messages.RequestInput;
import org.pytorch.serve.wlm.Model;
import org.pytorch.serve.wlm.ModelManager;
import org.pytorch.serve.wlm.ModelVersionedRefs;
import org.pytorch.serve.wlm.WorkerThread;

/**
 * How many bytes of requests and answers may be in memory: of bodies that arrive (outside the heap), of requests that
 * wait or are with a worker (in the heap), of answers that a client is slow to read.
 *
 * <p>What arrives and leaves is counted; the rest is looked up, so that nothing that ends oddly stays counted.
 */
final class Bodies {
    /** What Java itself needs of its heap. */
    private static final long OWN_BYTES = 64L << 20;

    static final long LARGEST_BODY = ConfigManager.getInstance().getMaxRequestSize();

    /** One body always passes. */
    static final long LIMIT =
            Math.max(
                    LARGEST_BODY,
                    Math.min(
                            room(Runtime.getRuntime().maxMemory()) - OWN_BYTES,
                            room(PlatformDependent.maxDirectMemory())));

    private static final Field QUEUES = field(Model.class, "jobsDb");

    private static final Field REQUEST = field(WorkerThread.class, "req");

    private static final AtomicLong PASSING = new AtomicLong();

    private Bodies() {}

    /**
     * What a memory has for bodies, in the heap or outside it. A quarter stays empty: arrays need room in one piece. Each
     * thread makes two copies of a body at a time: in the heap when it is whole and when it goes to a worker, outside
     * while it arrives or is a form, and once more for the worker that gets it.
     */
    private static long room(long memory) {
        ConfigManager settings = ConfigManager.getInstance();
        int threads = settings.getNettyThreads() + settings.getNettyClientThreads();
        return memory / 4 * 3 - 2 * threads * LARGEST_BODY;
    }

    private static Field field(Class<?> owner, String name) {
        try {
            Field field = owner.getDeclaredField(name);
            field.setAccessible(true);
            return field;
        } catch (NoSuchFieldException error) {
            throw new IllegalStateException("this isn't TorchServe 0.12", error);
        }
    }

    /** Counts so many bytes more that arrive; false, and counts nothing, where that is too many. */
    static boolean take(long bytes) {
        if (PASSING.addAndGet(bytes) + inModels() <= LIMIT) {
            return true;
        }
        give(bytes);
        return false;
    }

    /** Counts so many bytes that leave, which needs no permission. */
    static void add(long bytes) {
        PASSING.addAndGet(bytes);
    }

    /** Counts so many bytes less: they were handed over, or are gone. */
    static void give(long bytes) {
        PASSING.addAndGet(-bytes);
    }

    /** Whether none is in memory. */
    static boolean isEmpty() {
        return PASSING.get() + inModels() == 0;
    }

    private static long inModels() {
        long bytes = 0;
        for (Map.Entry<String, ModelVersionedRefs> versions : ModelManager.getInstance().getAllModels()) {
            for (Map.Entry<String, Model> version : versions.getValue().getAllVersions()) {
                bytes += of(version.getValue());
            }
        }
        return bytes;
    }

    private static long of(Model model) {
        long bytes = 0;
        for (Job job : queue(model)) {
            bytes += size(job.getPayload());
        }
        for (WorkerThread worker : ModelManager.getInstance().getWorkers(model.getModelVersionName())) {
            BaseModelRequest request = worker == null ? null : (BaseModelRequest) value(REQUEST, worker);
            if (request instanceof ModelInferenceRequest) {
                for (RequestInput input : ((ModelInferenceRequest) request).getRequestBatch()) {
                    bytes += size(input);
                }
            }
        }
        return bytes;
    }

    /** The requests that wait for a worker of a model. */
    @SuppressWarnings("unchecked")
    static Collection<Job> queue(Model model) {
        Object queue = ((Map<String, ?>) value(QUEUES, model)).get(Model.DEFAULT_DATA_QUEUE);
        return queue == null ? List.of() : (Collection<Job>) queue;
    }

    private static Object value(Field field, Object owner) {
        try {
            return field.get(owner);
        } catch (IllegalAccessException error) {
            throw new IllegalStateException(error);
        }
    }

    static long size(RequestInput input) {
        long bytes = 0;
        for (InputParameter parameter : input.getParameters()) {
            bytes += parameter.getValue().length;
        }
        return bytes;
    }
}
