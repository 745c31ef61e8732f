package densenet;

import io.grpc.ForwardingServerCallListener.SimpleForwardingServerCallListener;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.Status;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.pytorch.serve.grpcimpl.GRPCInterceptor;
import org.pytorch.serve.util.ConnectorType;

/**
 * A call over gRPC. Its message, whose length nobody tells beforehand, is read when there is a place for the largest one
 * (four copies of it are made); a call that finds none within a second is refused.
 */
public final class GrpcGate extends GRPCInterceptor {
    private static final int PLACE_SECONDS = 1;

    /** Messages that may arrive at once; they may take half of the memory that bodies may. */
    private static final Semaphore PLACES = new Semaphore((int) Math.max(1, Bodies.LIMIT / 8 / Bodies.LARGEST_BODY));

    /** As TorchServe's. */
    public GrpcGate(ConnectorType type) {
        super(type);
    }

    @Override
    public <A, B> ServerCall.Listener<A> interceptCall(
            ServerCall<A, B> call, Metadata headers, ServerCallHandler<A, B> next) {
        if (!hasPlace()) {
            call.close(Status.UNAVAILABLE.withDescription(ServiceUnavailableException.BYTES), new Metadata());
            return new ServerCall.Listener<A>() {};
        }
        AtomicBoolean arriving = new AtomicBoolean(true);
        Runnable leave =
                () -> {
                    if (arriving.getAndSet(false)) {
                        PLACES.release();
                    }
                };
        return new SimpleForwardingServerCallListener<A>(super.interceptCall(call, headers, next)) {
            @Override
            public void onHalfClose() {
                try {
                    super.onHalfClose(); // puts the request into the queue
                } finally {
                    leave.run();
                }
            }

            @Override
            public void onCancel() {
                leave.run();
                super.onCancel();
            }

            @Override
            public void onComplete() {
                leave.run();
                super.onComplete();
            }
        };
    }

    private static boolean hasPlace() {
        try {
            if (!PLACES.tryAcquire(PLACE_SECONDS, TimeUnit.SECONDS)) {
                return false;
            }
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            return false;
        }
        if (Bodies.take(0)) {
            return true;
        }
        PLACES.release();
        return false;
    }
}
