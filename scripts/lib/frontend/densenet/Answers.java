package densenet;

import io.netty.channel.Channel;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.HttpRequest;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpResponseStatus;
import org.pytorch.serve.http.BadRequestException;
import org.pytorch.serve.util.NettyUtils;
import org.pytorch.serve.wlm.ModelManager;
import org.pytorch.serve.wlm.WorkerState;

/** How a request is answered: TorchServe's way, but for what is worth another try, and what can't be read. */
public final class Answers {
    private Answers() {}

    /**
     * See NettyUtils. TorchServe says 500, 413 or 507 where the worker died, and 403 to what can't be decoded: a query, a
     * character set.
     */
    public static void sendError(ChannelHandlerContext context, HttpResponseStatus status, Throwable error) {
        if ("Worker died.".equals(error.getMessage())) {
            NettyUtils.sendError(
                    context,
                    HttpResponseStatus.SERVICE_UNAVAILABLE,
                    wasReady() ? new WorkerDied() : new ServiceUnavailableException(Waiting.NOT_READY));
        } else if (status.equals(HttpResponseStatus.SERVICE_UNAVAILABLE)) {
            NettyUtils.sendError(context, status, new ServiceUnavailableException(error.getMessage()));
        } else if (status.equals(HttpResponseStatus.FORBIDDEN)) {
            String said = "received what can't be decoded: " + error.getMessage();
            NettyUtils.sendError(context, HttpResponseStatus.BAD_REQUEST, new BadRequestException(said));
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
    public static void requestReceived(Channel channel, HttpRequest request) {
        NettyUtils.requestReceived(channel, request);
    }

    /** See NettyUtils. */
    public static void sendHttpResponse(ChannelHandlerContext context, HttpResponse response, boolean keepAlive) {
        NettyUtils.sendHttpResponse(context, response, keepAlive);
    }
}
