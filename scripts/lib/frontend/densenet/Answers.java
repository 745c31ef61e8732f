package densenet;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import org.pytorch.serve.util.NettyUtils;
import org.pytorch.serve.wlm.ModelManager;
import org.pytorch.serve.wlm.WorkerState;

/** How a request is answered that went to a worker: TorchServe's way, but for what is worth another try. */
public final class Answers {
    private Answers() {}

    /** See NettyUtils. TorchServe says 500, 413 or 507 where the worker died. */
    public static void sendError(ChannelHandlerContext context, HttpResponseStatus status, Throwable error) {
        if ("Worker died.".equals(error.getMessage())) {
            NettyUtils.sendError(
                    context,
                    HttpResponseStatus.SERVICE_UNAVAILABLE,
                    wasReady() ? new WorkerDied() : new ServiceUnavailableException(Waiting.NOT_READY));
        } else if (status.equals(HttpResponseStatus.SERVICE_UNAVAILABLE)) {
            NettyUtils.sendError(context, status, new ServiceUnavailableException(error.getMessage()));
        } else {
            NettyUtils.sendError(context, status, error);
        }
    }

    /** Whether a worker is READY, or was when it died. One that can't start takes a request along, too. */
    private static boolean wasReady() {
        return ModelManager.getInstance().getWorkers().values().stream()
                .anyMatch(worker -> worker.getState() == WorkerState.WORKER_MODEL_LOADED);
    }

    /** See NettyUtils. */
    public static void sendHttpResponse(ChannelHandlerContext context, HttpResponse response, boolean keepAlive) {
        NettyUtils.sendHttpResponse(context, response, keepAlive);
    }
}
