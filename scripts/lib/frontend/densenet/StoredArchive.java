package densenet;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.OpenOption;
import java.nio.file.Path;
import org.pytorch.serve.archive.model.InvalidModelException;
import org.pytorch.serve.archive.model.ModelNotFoundException;
import org.pytorch.serve.archive.utils.ZipUtils;

/**
 * What TorchServe's ModelArchive calls of Files and ZipUtils. A model is an archive, a file that lies in the model
 * store: TorchServe itself follows a symbolic link out of it, and takes any folder of the machine by its path.
 */
public final class StoredArchive {
    private StoredArchive() {}

    /** See Files. */
    public static InputStream newInputStream(Path path, OpenOption... options)
            throws InvalidModelException, IOException {
        if (Files.isSymbolicLink(path)) {
            throw new InvalidModelException("a symbolic link isn't taken; put the archive itself into the model store");
        }
        return Files.newInputStream(path, LinkOption.NOFOLLOW_LINKS);
    }

    /** See Files. */
    public static boolean isSymbolicLink(Path path) {
        return Files.isSymbolicLink(path);
    }

    /** See ZipUtils. */
    public static File unzip(InputStream archive, String name, String prefix, boolean named) throws IOException {
        return ZipUtils.unzip(archive, name, prefix, named);
    }

    /** TorchServe prepares a folder as a model with it. */
    public static File createTempDir(String name, String prefix) throws ModelNotFoundException {
        throw new ModelNotFoundException("there is no such archive in the model store; a folder isn't taken");
    }

    /** See ZipUtils; never reached, as {@link #createTempDir} comes before. */
    public static File createSymbolicDir(File source, File target) throws IOException {
        return ZipUtils.createSymbolicDir(source, target);
    }
}
