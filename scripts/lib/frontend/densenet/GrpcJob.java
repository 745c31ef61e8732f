package densenet;

import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.util.Map;
import org.pytorch.serve.grpc.inference.PredictionResponse;
import org.pytorch.serve.grpc.management.ManagementResponse;
import org.pytorch.serve.grpc.openinference.OpenInferenceGrpc.ModelInferResponse;
import org.pytorch.serve.job.GRPCJob;
import org.pytorch.serve.util.messages.RequestInput;
import org.pytorch.serve.util.messages.WorkerCommands;

/** TorchServe's request over gRPC; what goes wrong with its answer, as with a client that is gone, ends no worker. */
public final class GrpcJob extends GRPCJob {
    private final ServerCallStreamObserver<?> client;

    /** A prediction. */
    public GrpcJob(
            StreamObserver<PredictionResponse> observer,
            String model,
            String version,
            WorkerCommands command,
            RequestInput input) {
        super(observer, model, version, command, input);
        client = (ServerCallStreamObserver<?>) observer;
    }

    /** A description. */
    public GrpcJob(StreamObserver<ManagementResponse> observer, String model, String version, RequestInput input) {
        super(observer, model, version, input);
        client = (ServerCallStreamObserver<?>) observer;
    }

    /** A prediction of the Open Inference Protocol. */
    public GrpcJob(
            StreamObserver<ModelInferResponse> observer,
            String model,
            String version,
            RequestInput input,
            WorkerCommands command) {
        super(observer, model, version, input, command);
        client = (ServerCallStreamObserver<?>) observer;
    }

    @Override
    public void response(
            byte[] body, CharSequence type, int status, String phrase, Map<String, String> headers) {
        guarded(() -> super.response(body, type, status, phrase, headers));
    }

    @Override
    public void sendError(int status, String error) {
        guarded(() -> super.sendError(status, error));
    }

    private void guarded(Runnable answer) {
        try {
            if (isOpen()) {
                answer.run();
            }
        } catch (RuntimeException error) {
            if (isOpen()) {
                client.onError(Status.INTERNAL.withDescription(error.toString()).asRuntimeException());
            }
        }
    }

    /** Whether somebody waits for the answer; TorchServe's says the opposite. */
    @Override
    public boolean isOpen() {
        return !client.isCancelled();
    }
}
