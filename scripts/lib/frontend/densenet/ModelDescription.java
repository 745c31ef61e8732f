package densenet;

import java.io.IOException;
import java.nio.file.Files;
import org.pytorch.serve.openapi.OpenApiUtils;
import org.pytorch.serve.wlm.Model;

/** What OPTIONS /predictions/… answers: the archive's own description, openapi.json, where it has one. */
public final class ModelDescription {
    private ModelDescription() {}

    /** See OpenApiUtils, whose description has a path that doesn't exist, no requests and no errors. */
    public static String getModelApi(Model model) {
        try {
            return Files.readString(model.getModelDir().toPath().resolve("openapi.json"));
        } catch (IOException error) { // an archive without one
            return OpenApiUtils.getModelApi(model);
        }
    }
}
